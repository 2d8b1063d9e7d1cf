/* apad of a release: becomes the build that fits the processor, in ../lib/apa. Does nothing else, and runs on any x86-64. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "level.h"

int main(int argc, char **argv) {
    (void)argc;
    char path[PATH_MAX + 64];
    const char *level = apa_level();
    if (!level) {
        fputs("apad: " APA_BELOW_FLOOR "\n", stderr);
        return 1;
    }
    const ssize_t length = readlink("/proc/self/exe", path, PATH_MAX);
    char *slash = NULL;
    if (length > 0) {
        path[length] = 0;
        slash = strrchr(path, '/');
    }
    if (!slash) {
        fputs("apad: can't tell where it was installed: /proc/self/exe can't be read\n", stderr);
        return 1;
    }
    snprintf(slash, sizeof path - (size_t)(slash - path), "/../lib/apa/%s/apad", level);
    execv(path, argv);
    fprintf(stderr, "apad: %s can't be started: %s\n", path, strerror(errno));
    return 1;
}
