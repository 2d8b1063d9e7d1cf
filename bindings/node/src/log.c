/* The log of the library, kept for the thread of JavaScript that asked for it last: at most MOST_LINES lines, of which the newest stay.
 * Knows no JavaScript. */
#include "addon.h"

#include <stdlib.h>
#include <string.h>

#define MOST_LINES 1024

/* The library has one hook a process, and there is an addon for every thread of JavaScript. */
static pthread_mutex_t owner_lock = PTHREAD_MUTEX_INITIALIZER;
static addon *owner;

/* On a thread of the library. It takes the addon's lock alone, which nobody holds while he waits for the library. */
static void keep(void *data, int32_t level, const char *json, size_t length)
{
    addon *a = data;
    line *oldest = NULL, *l = malloc(sizeof *l + length);

    (void)level;
    if (l) {
        l->next = NULL;
        l->length = length;
        memcpy(l->json, json, length);
    }
    pthread_mutex_lock(&a->lock);
    if (!l) {
        a->missed++;
    } else {
        if (a->kept == MOST_LINES) {
            oldest = a->lines;
            a->lines = oldest->next;
            a->missed++;
        } else {
            a->kept++;
        }
        if (a->lines)
            a->newest->next = l;
        else
            a->lines = l;
        a->newest = l;
        call_loop(a);
    }
    pthread_mutex_unlock(&a->lock);
    free(oldest);
}

/* Has lines up to `level` kept; 0 keeps none, which is left alone where another thread's addon has the log. */
apa_status set_log(addon *a, int32_t level, apa_error **error)
{
    apa_status status = APA_OK;

    pthread_mutex_lock(&owner_lock);
    if (level != 0 || owner == a) {
        status = apa_log_set(level, level ? keep : NULL, a, error);
        if (status == APA_OK)
            owner = level ? a : NULL;
    }
    pthread_mutex_unlock(&owner_lock);
    return status;
}

/* What is kept, oldest first; whoever takes it frees it. */
line *take_lines(addon *a, uint32_t *missed)
{
    line *lines;

    pthread_mutex_lock(&a->lock);
    lines = a->lines;
    *missed = a->missed;
    a->lines = a->newest = NULL;
    a->kept = a->missed = 0;
    pthread_mutex_unlock(&a->lock);
    return lines;
}

/* Keeps nothing any more. When it returns the library knows nothing of the addon, which may be freed. */
void drop_log(addon *a)
{
    uint32_t missed;
    line *l, *rest;

    set_log(a, 0, NULL);
    for (rest = take_lines(a, &missed); (l = rest) != NULL;) {
        rest = l->next;
        free(l);
    }
}
