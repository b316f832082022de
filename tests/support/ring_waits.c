/* Makes the ring of MLX's ranks wait as other programs do: tests/support/ring_waits.py says why.

   recv: nothing there yet? The thread sleeps until something is, or a fifth of a millisecond: what
   it has to send meanwhile waits that long at most.
   connect: a peer that does not listen yet? It is asked again soon; the ring would after a second. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

enum { RECV_NS = 200 * 1000, AGAIN_NS = 20 * 1000 * 1000, TIMES = 40 };

ssize_t recv(int fd, void *buffer, size_t size, int flags) {
  static ssize_t (*right)(int, void *, size_t, int);
  if (!right) right = dlsym(RTLD_NEXT, "recv");
  ssize_t got = right(fd, buffer, size, flags);
  if (got < 0 && errno == EAGAIN && getenv("MLX_RANK")) {
    struct pollfd peer = {.fd = fd, .events = POLLIN};
    ppoll(&peer, 1, &(struct timespec){.tv_nsec = RECV_NS}, 0);
    errno = EAGAIN;
  }
  return got;
}

int connect(int fd, const struct sockaddr *address, socklen_t size) {
  static int (*right)(int, const struct sockaddr *, socklen_t);
  if (!right) right = dlsym(RTLD_NEXT, "connect");
  int failed = right(fd, address, size);
  for (int i = 0; failed && errno == ECONNREFUSED && i < TIMES && getenv("MLX_RANK"); i++) {
    nanosleep(&(struct timespec){.tv_nsec = AGAIN_NS}, 0);
    failed = right(fd, address, size);
  }
  return failed;
}
