/* Which of the builds of a release this processor runs. Chooses; loads nothing. */
#ifndef APA_LEVEL_H
#define APA_LEVEL_H

#include <stdlib.h>
#include <string.h>

/* What is said of a processor below the floor. */
#define APA_BELOW_FLOOR "this processor can't run libapa: it lacks AVX2, FMA or what else x86-64-v3 asks for"

/* The fastest level first; LEVELS of scripts/dist.sh has the same. APA_LEVEL chooses another one, if the processor has it.
   Null: none. */
static const char *apa_level(void) {
    const char *wanted = getenv("APA_LEVEL");
    const char *levels[] = {"cooperlake", "cascadelake", "x86-64-v4", "x86-64-v3"};
    __builtin_cpu_init();
    const int v4 = __builtin_cpu_supports("x86-64-v4"), vnni = v4 && __builtin_cpu_supports("avx512vnni");
    const int runs[] = {vnni && __builtin_cpu_supports("avx512bf16"), vnni, v4, __builtin_cpu_supports("x86-64-v3")};
    for (int i = 0; i < 4; i++)
        if (runs[i] && (!wanted || strcmp(wanted, levels[i]) == 0)) return levels[i];
    return NULL;
}

#endif
