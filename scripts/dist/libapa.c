/* libapa.so of a release: loads the build that fits the processor from apa/ beside it when it is loaded itself, and passes every
   call on. Its functions are jumps, made from apa.h by scripts/dist.sh (names.h: APA_FUNCTION(name) each). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "level.h"

enum {
#define APA_FUNCTION(name) INDEX_##name,
#include "names.h"
#undef APA_FUNCTION
    COUNT
};

__attribute__((visibility("hidden"))) void *apa_table[COUNT];

#define APA_TEXT_(x) #x
#define APA_TEXT(x) APA_TEXT_(x)
#define APA_FUNCTION(name)                                            \
    __attribute__((naked, visibility("default"))) void name(void) {   \
        __asm__("jmp *apa_table+8*%c0(%%rip)" : : "i"(INDEX_##name)); \
    }
#include "names.h"
#undef APA_FUNCTION

static const char *const names[] = {
#define APA_FUNCTION(name) #name,
#include "names.h"
#undef APA_FUNCTION
};

/* An application can't be told otherwise: it is loading us. */
static void give_up(const char *why) {
    fprintf(stderr, "libapa: %s\n", why);
    _exit(1);
}

__attribute__((constructor)) static void choose(void) {
    char path[PATH_MAX + 64];
    Dl_info self;
    const char *level = apa_level();
    if (!level) give_up(APA_BELOW_FLOOR);
    if (!dladdr((void *)choose, &self) || !realpath(self.dli_fname, path)) give_up("can't tell where it was installed");
    char *slash = strrchr(path, '/');
    snprintf(slash, sizeof path - (size_t)(slash - path), "/apa/%s/libapa.so", level);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) give_up(dlerror());
    for (int i = 0; i < COUNT; i++)
        if (!(apa_table[i] = dlsym(library, names[i]))) give_up(dlerror());
}
