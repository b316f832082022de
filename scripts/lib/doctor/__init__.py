"""The cluster doctor behind verify_cluster.sh: what would break a launch, before the launch.

In the order in which a run goes through them:

    plan          what is to be launched, and where: the hostfile and the settings
    commands      which of their own tools the hosts are asked to run
    probe         the program sent to every host; find_python.sh starts it there
    ask           one ssh to each host, and what came back
    mac_text, processes, facts    the texts of the tools as typed facts of one host
    cluster       the facts of all hosts beside the plan
    findings      a verdict with its symptom and its fix
    judge_*       pure functions from the facts of all hosts to findings
    checks        the list of checks: names, when they apply, what they need
    report        the table and the words, or JSON
    fix           the fixes that can be taken back, each only after a yes
    main          the command line

All but the probe runs on the machine of whoever asks. The standard library alone. The hosts are
never changed, except by `fix`.
"""
