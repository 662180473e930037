/* Preloaded by tests: writes down which bytes of which model are read, and fails reads of models
 * whose name begins with `eio-` on the rank that EIO_RANK names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef ssize_t (*pread_function)(int, void *, size_t, off64_t);

ssize_t pread64(int fd, void *into, size_t count, off64_t offset) {
    pread_function next = (pread_function)dlsym(RTLD_NEXT, "pread64");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length > 0 ? length : 0] = 0;
    const char *name = strrchr(path, '/');
    const char *rank = getenv("RANK"), *failing = getenv("EIO_RANK"), *log = getenv("READ_LOG");
    if (!name || !strstr(name, ".safetensors"))
        return next(fd, into, count, offset);
    if (rank && failing && !strcmp(rank, failing) && !strncmp(name, "/eio-", 5) && offset > 65536) {
        errno = EIO;
        return -1;
    }
    ssize_t got = next(fd, into, count, offset);
    if (log && rank && got > 0) {
        char file[4200], line[4200];
        snprintf(file, sizeof file, "%s.%s", log, rank);
        long long from = (long long)offset;
        int written = snprintf(line, sizeof line, "%s %lld %zd\n", name + 1, from, got);
        int out = open(file, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (out >= 0) {
            if (write(out, line, written) != written)
                abort();
            close(out);
        }
    }
    return got;
}
