/* What the files of the addon share: its state in a thread of JavaScript, and objects that JavaScript holds. */
#ifndef APA_ADDON_H
#define APA_ADDON_H

#define NAPI_VERSION 8
#include <apa.h>
#include <node_api.h>
#include <pthread.h>
#include <stdbool.h>

typedef enum { ENGINE, GENERATION, FEED } kind;

struct addon;

/* A handle of the library in the hands of JavaScript. The handle stays after its free: the library knows that it is closed. */
typedef struct object {
    kind kind;
    bool freed;
    bool ready; /* In the list of what can be pulled. Guarded by the addon's lock. */
    uint32_t id;
    void *handle;
    struct addon *addon; /* NULL once the thread of JavaScript has ended. */
    struct object *previous, *next;
    struct object *next_ready;
} object;

/* Calls that wait for the disk or the trainer: made on threads of the addon's own, never on those of libuv. */
typedef enum {
    OPEN,
    CLOSE,
    FEEDBACK,
    PREFERENCE,
    SAMPLE,
    FORGET,
    UNLEARN_PLAN,
    REWARD,
    SHOW,
    VERSIONS,
    STEP,
    UNLEARN,
    ACTIVATE,
    ROLLBACK,
    SYNC,
    SNAPSHOT,
    RESTORE,
    HTTP_START,
    HTTP_STOP,
    OPERATIONS
} operation;

/* One of those calls. */
typedef struct job {
    operation operation;
    void *engine;
    char *text;
    size_t text_len;
    double number;
    napi_deferred promise; /* NULL if nobody waits. */
    apa_status status;
    apa_error *error;
    apa_string *string;
    uint64_t version;
    bool has_version;
    struct job *next;
} job;

typedef struct {
    job *first, *last;
    int threads, most;
} lane;

/* A line of the log, as the library gave it. */
typedef struct line {
    struct line *next;
    size_t length;
    char json[];
} line;

/* A quick lane for the disk and a slow one for models and training: feedback never waits for a training step. */
enum { QUICK, SLOW, LANES };

typedef struct addon {
    napi_env env;
    napi_threadsafe_function loop; /* Calls `drain` on the thread of JavaScript. */
    napi_ref make_error, pull;     /* Functions of index.js. */
    uint32_t next_id;
    int held; /* What keeps the event loop alive. Only touched by the thread of JavaScript, as is all above. */
    object *objects;

    pthread_mutex_t lock;
    pthread_cond_t idle;
    bool closing;
    bool called; /* `drain` is on its way. */
    object *ready;
    job *done;
    lane lanes[LANES];
    line *lines, *newest;  /* Of the log, oldest first. */
    uint32_t kept, missed; /* How many these are, and how many were dropped since the last was taken. */
} addon;

/* jobs.c */
bool queue_job(addon *a, job *j);
void free_job(job *j);
void finish_jobs(addon *a);
void call_loop(addon *a); /* With the lock held. */

/* log.c */
apa_status set_log(addon *a, int32_t level, apa_error **error);
void drop_log(addon *a);
line *take_lines(addon *a, uint32_t *missed);

#endif
