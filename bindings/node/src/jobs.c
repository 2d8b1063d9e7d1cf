/* Runs the calls that wait, on threads of their own that end when there is nothing left to do. Knows no JavaScript. */
#include "addon.h"

#include <stdlib.h>

static lane *lane_of(addon *a, operation o)
{
    return &a->lanes[o >= FEEDBACK && o <= VERSIONS ? QUICK : SLOW];
}

static apa_status run(job *j)
{
    apa_engine *engine = j->engine;
    apa_options *options = NULL;

    switch (j->operation) {
    case OPEN:
        j->engine = NULL;
        j->status = apa_options_new(&options, &j->error);
        if (j->status == APA_OK)
            j->status = apa_options_set_json(options, "", 0, j->text, j->text_len, &j->error);
        if (j->status == APA_OK)
            j->status = apa_engine_open(options, &engine, &j->error);
        if (j->status == APA_OK)
            j->engine = engine;
        apa_options_free(options);
        return j->status;
    case CLOSE:
        apa_engine_free(engine);
        return APA_OK;
    case FEEDBACK:
        return apa_feedback(engine, j->text, j->text_len, &j->string, &j->error);
    case PREFERENCE:
        return apa_preference(engine, j->text, j->text_len, &j->string, &j->error);
    case SAMPLE:
        return apa_sample_add(engine, j->text, j->text_len, &j->string, &j->error);
    case FORGET:
        return apa_forget(engine, j->text, j->text_len, &j->string, &j->error);
    case UNLEARN_PLAN:
        return apa_unlearn_plan(engine, j->text, j->text_len, &j->string, &j->error);
    case UNLEARN:
        return apa_unlearn(engine, j->text, j->text_len, &j->string, &j->error);
    case REWARD:
        return apa_reward_put(engine, j->text, j->text_len, j->number, &j->error);
    case SHOW:
        return apa_policy_show(engine, (uint64_t)j->number, &j->string, &j->error);
    case VERSIONS:
        return apa_policy_list(engine, &j->string, &j->error);
    case STEP:
        return apa_trainer_step(engine, &j->string, &j->error);
    case ACTIVATE:
        return apa_policy_activate(engine, (uint64_t)j->number, &j->error);
    case ROLLBACK:
        j->has_version = true;
        return apa_policy_rollback(engine, &j->version, &j->error);
    case SYNC:
        j->has_version = true;
        return apa_policy_sync(engine, &j->version, &j->error);
    case SNAPSHOT:
        return apa_policy_snapshot(engine, (uint64_t)j->number, j->text, j->text_len, &j->error);
    case RESTORE:
        j->has_version = true;
        return apa_policy_restore(engine, j->text, j->text_len, &j->version, &j->error);
    case HTTP_START:
        return apa_http_start(engine, j->text, j->text_len, &j->string, &j->error);
    case HTTP_STOP:
        return apa_http_stop(engine, &j->error);
    case OPERATIONS:
        break;
    }
    return APA_ERR_ARG;
}

void free_job(job *j)
{
    apa_error_free(j->error);
    apa_string_free(j->string);
    free(j->text);
    free(j);
}

typedef struct {
    addon *addon;
    lane *lane;
} worker;

static void *work(void *data)
{
    worker w = *(worker *)data;
    addon *a = w.addon;
    job *j;

    free(data);
    pthread_mutex_lock(&a->lock);
    while ((j = w.lane->first) != NULL) {
        w.lane->first = j->next;
        pthread_mutex_unlock(&a->lock);
        j->status = run(j);
        pthread_mutex_lock(&a->lock);
        j->next = a->done;
        a->done = j;
        call_loop(a);
    }
    w.lane->threads--;
    pthread_cond_broadcast(&a->idle);
    pthread_mutex_unlock(&a->lock);
    return NULL;
}

/* Queues a job; false if it can't be run, and then it is still the caller's. */
bool queue_job(addon *a, job *j)
{
    lane *l = lane_of(a, j->operation);
    worker *w;
    pthread_t thread;
    bool queued = true;

    pthread_mutex_lock(&a->lock);
    if (a->closing) {
        pthread_mutex_unlock(&a->lock);
        return false;
    }
    if (l->threads < l->most) {
        w = malloc(sizeof *w);
        if (w) {
            w->addon = a;
            w->lane = l;
            l->threads++;
            if (pthread_create(&thread, NULL, work, w) == 0) {
                pthread_detach(thread);
            } else {
                l->threads--;
                free(w);
            }
        }
        queued = l->threads > 0;
    }
    if (queued) {
        j->next = NULL;
        if (l->first)
            l->last->next = j;
        else
            l->first = j;
        l->last = j;
    }
    pthread_mutex_unlock(&a->lock);
    return queued;
}

/* Drops what has not begun and waits for what has. Engines that run must be freed before: that ends their calls. */
void finish_jobs(addon *a)
{
    job *j, *ended;
    int i;

    pthread_mutex_lock(&a->lock);
    for (i = 0; i < LANES; i++) {
        while ((j = a->lanes[i].first) != NULL) {
            a->lanes[i].first = j->next;
            j->next = a->done;
            a->done = j;
        }
        while (a->lanes[i].threads > 0)
            pthread_cond_wait(&a->idle, &a->lock);
    }
    ended = a->done;
    a->done = NULL;
    pthread_mutex_unlock(&a->lock);
    while ((j = ended) != NULL) {
        ended = j->next;
        if (j->operation == OPEN || j->operation == CLOSE)
            apa_engine_free(j->engine);
        free_job(j);
    }
}
