"""Brings what rank 0 has to the other hosts: the checkout, its environment, a model.

    parallel      the same steps on every host at once; one that fails stops no other
    probe         what a host is and has, asked with nothing but its shell
    rsync         one copy to one host, with progress and a deadline
    checkout      which files are ours, and which of ours are ours no more
    environment   which environment the ranks use, and where a copy of it would be useless
    versions      what a host's Python really imports, compared with this machine's
    routes        the fastest address of a host
    manifest      a model's files, sizes and hashes
    node_model    the program that looks after a model on its host
    model_copy    one model to one host, with these four
    hub           a model's download

Used by sync_nodes.py and sync_model.py, on the machine that has the files. All of it needs the
standard library alone but hub, which needs huggingface-hub.
"""
