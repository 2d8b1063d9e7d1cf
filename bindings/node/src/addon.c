/* The calls of apa.h as functions of JavaScript, for index.js alone. A call that may wait gives a promise; text is pulled when the
 * library has said that there is some. Nothing here waits on the thread of JavaScript but the end of it. */
#include "addon.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_ARGUMENTS 4

/* Outcomes of `next` that are no text. */
static napi_value number_of(napi_env env, double number)
{
    napi_value value = NULL;
    napi_create_double(env, number, &value);
    return value;
}

static napi_value text_of(napi_env env, apa_string *string)
{
    napi_value value = NULL;
    napi_create_string_utf8(env, apa_string_data(string), apa_string_len(string), &value);
    apa_string_free(string);
    return value;
}

static napi_value error_of(addon *a, apa_status status, const char *message)
{
    napi_env env = a->env;
    napi_value arguments[2], function, none, error = NULL;

    napi_get_undefined(env, &none);
    napi_create_int32(env, status, &arguments[0]);
    napi_create_string_utf8(env, message, NAPI_AUTO_LENGTH, &arguments[1]);
    napi_get_reference_value(env, a->make_error, &function);
    napi_call_function(env, none, function, 2, arguments, &error);
    return error;
}

static napi_value throw_status(addon *a, apa_status status, const char *message)
{
    napi_throw(a->env, error_of(a, status, message));
    return NULL;
}

static napi_value throw_error(addon *a, apa_status status, apa_error *error)
{
    throw_status(a, status, apa_error_message(error));
    apa_error_free(error);
    return NULL;
}

/* Keeps the event loop alive while someone waits. */
static void hold(addon *a, int change)
{
    int before = a->held;
    a->held += change;
    if (before == 0 && a->held > 0)
        napi_ref_threadsafe_function(a->env, a->loop);
    if (before > 0 && a->held == 0)
        napi_unref_threadsafe_function(a->env, a->loop);
}

/* ---- objects ---- */

static void unlink_object(object *o)
{
    addon *a = o->addon;
    object **place;

    pthread_mutex_lock(&a->lock);
    if (o->ready) {
        for (place = &a->ready; *place != o; place = &(*place)->next_ready)
            ;
        *place = o->next_ready;
        o->ready = false;
    }
    pthread_mutex_unlock(&a->lock);
    if (o->previous)
        o->previous->next = o->next;
    else
        a->objects = o->next;
    if (o->next)
        o->next->previous = o->previous;
    o->previous = o->next = NULL;
    o->addon = NULL;
}

/* Frees what a handle stands for. Without the lock: the library waits for a hook that runs, and the hook takes the lock. */
static void free_handle(object *o)
{
    if (o->freed)
        return;
    o->freed = true;
    if (o->kind == GENERATION)
        apa_gen_free(o->handle);
    else if (o->kind == FEED)
        apa_feed_free(o->handle);
    else
        apa_engine_free(o->handle);
}

static void collected(napi_env env, void *data, void *hint)
{
    object *o = data;
    job *j;

    (void)env;
    (void)hint;
    if (o->addon) {
        if (o->kind == ENGINE && !o->freed) {
            /* Freeing waits for the engine's threads; the collector does not. */
            j = calloc(1, sizeof *j);
            if (j) {
                j->operation = CLOSE;
                j->engine = o->handle;
                if (queue_job(o->addon, j))
                    o->freed = true;
                else
                    free(j);
            }
        }
        free_handle(o);
        unlink_object(o);
    }
    free(o);
}

static object *new_object(addon *a, kind kind)
{
    object *o = calloc(1, sizeof *o);
    if (!o) {
        throw_status(a, APA_ERR_NOMEM, "memory ran out");
        return NULL;
    }
    o->kind = kind;
    o->freed = true; /* Until there is a handle. */
    o->id = a->next_id++;
    o->addon = a;
    o->next = a->objects;
    if (a->objects)
        a->objects->previous = o;
    a->objects = o;
    return o;
}

static napi_value external_of(addon *a, object *o)
{
    napi_value value = NULL;
    if (napi_create_external(a->env, o, collected, NULL, &value) != napi_ok) {
        free_handle(o);
        unlink_object(o);
        free(o);
        return throw_status(a, APA_ERR_NOMEM, "memory ran out");
    }
    return value;
}

/* ---- from other threads ---- */

void call_loop(addon *a)
{
    if (!a->called && !a->closing) {
        a->called = true;
        napi_call_threadsafe_function(a->loop, NULL, napi_tsfn_nonblocking);
    }
}

/* The hook of a generation or feed: on a thread of the library. */
static void wake(void *data)
{
    object *o = data;
    addon *a = o->addon;

    pthread_mutex_lock(&a->lock);
    if (!o->ready) {
        o->ready = true;
        o->next_ready = a->ready;
        a->ready = o;
        call_loop(a);
    }
    pthread_mutex_unlock(&a->lock);
}

static void settle(addon *a, job *j)
{
    napi_env env = a->env;
    napi_value value;
    object *o;

    napi_get_undefined(env, &value);
    if (j->status < 0) {
        napi_reject_deferred(env, j->promise, error_of(a, j->status, apa_error_message(j->error)));
        return;
    }
    if (j->operation == OPEN) {
        o = new_object(a, ENGINE);
        if (o) {
            o->handle = j->engine;
            o->freed = false;
            value = external_of(a, o);
        } else {
            apa_engine_free(j->engine);
        }
    } else if (j->string) {
        value = text_of(env, j->string);
        j->string = NULL;
    } else if (j->has_version) {
        value = number_of(env, (double)j->version);
    }
    napi_resolve_deferred(env, j->promise, value);
}

/* On the thread of JavaScript: what other threads have left. */
static void drain(napi_env env, napi_value unused, void *context, void *data)
{
    addon *a = context;
    object *o;
    job *done, *first = NULL, *j;
    napi_value arguments[2], ids, id, function, none;
    uint32_t count = 0, ready_id, i;
    bool logged;

    (void)unused;
    (void)data;
    if (!env)
        return; /* The thread is ending, and the addon with it. */
    pthread_mutex_lock(&a->lock);
    a->called = false;
    done = a->done;
    a->done = NULL;
    logged = a->lines != NULL;
    for (o = a->ready; o; o = o->next_ready)
        count++;
    pthread_mutex_unlock(&a->lock);
    napi_create_array(env, &ids);
    /* Never into Node with the lock held: the collector may run, and takes it. */
    for (i = 0; i < count; i++) {
        pthread_mutex_lock(&a->lock);
        o = a->ready;
        if (o) {
            a->ready = o->next_ready;
            o->ready = false;
            ready_id = o->id;
        }
        pthread_mutex_unlock(&a->lock);
        if (!o)
            break;
        napi_create_uint32(env, ready_id, &id);
        napi_set_element(env, ids, i, id);
    }

    /* The newest is first; promises are settled in the order in which their calls ended. */
    while (done) {
        j = done;
        done = j->next;
        j->next = first;
        first = j;
    }
    while (first) {
        j = first;
        first = j->next;
        if (j->promise) {
            settle(a, j);
            hold(a, -1);
        }
        free_job(j);
    }
    if (count || logged) {
        napi_get_undefined(env, &none);
        napi_get_reference_value(env, a->pull, &function);
        arguments[0] = ids;
        napi_get_boolean(env, logged, &arguments[1]);
        napi_call_function(env, none, function, 2, arguments, NULL);
    }
}

/* ---- functions of JavaScript ---- */

static addon *arguments_of(napi_env env, napi_callback_info info, napi_value *arguments)
{
    size_t count = MOST_ARGUMENTS;
    addon *a = NULL;

    napi_get_cb_info(env, info, &count, arguments, NULL, (void **)&a);
    return a;
}

static object *object_of(addon *a, napi_value value)
{
    napi_valuetype type = napi_undefined;
    void *data = NULL;

    napi_typeof(a->env, value, &type);
    if (type != napi_external || napi_get_value_external(a->env, value, &data) != napi_ok)
        return NULL;
    return data;
}

static void *engine_of(addon *a, napi_value value)
{
    object *o = object_of(a, value);
    return o && o->kind == ENGINE ? o->handle : NULL;
}

/* A copy of a string; NULL after an exception. */
static char *string_of(addon *a, napi_value value, size_t *length)
{
    char *text;
    napi_valuetype type = napi_undefined;

    *length = 0;
    napi_typeof(a->env, value, &type);
    if (type == napi_string)
        napi_get_value_string_utf8(a->env, value, NULL, 0, length);
    text = malloc(*length + 1);
    if (!text) {
        throw_status(a, APA_ERR_NOMEM, "memory ran out");
        return NULL;
    }
    text[0] = 0;
    if (type == napi_string)
        napi_get_value_string_utf8(a->env, value, text, *length + 1, length);
    return text;
}

/* setup(makeError, pull): once, before all else. */
static napi_value setup(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS];
    addon *a = arguments_of(env, info, arguments);

    if (!a->make_error) {
        napi_create_reference(env, arguments[0], 1, &a->make_error);
        napi_create_reference(env, arguments[1], 1, &a->pull);
    }
    return NULL;
}

/* call(operation, engine, text, number): a promise of text, a number or an engine. */
static napi_value call(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS], promise = NULL;
    addon *a = arguments_of(env, info, arguments);
    job *j = calloc(1, sizeof *j);
    int32_t operation = OPERATIONS;
    object *o = object_of(a, arguments[1]);

    if (!j)
        return throw_status(a, APA_ERR_NOMEM, "memory ran out");
    napi_get_value_int32(env, arguments[0], &operation);
    j->operation = operation >= 0 && operation < OPERATIONS ? (int)operation : OPERATIONS;
    j->engine = engine_of(a, arguments[1]);
    j->text = string_of(a, arguments[2], &j->text_len);
    if (!j->text) {
        free(j);
        return NULL;
    }
    napi_get_value_double(env, arguments[3], &j->number);
    napi_create_promise(env, &j->promise, &promise);
    if (queue_job(a, j)) {
        hold(a, 1);
        if (j->operation == CLOSE && o)
            o->freed = true;
        return promise;
    }
    napi_reject_deferred(env, j->promise, error_of(a, APA_ERR_NOMEM, "no thread could be started"));
    free_job(j);
    return promise;
}

typedef enum { STATUS, METRICS, RENDER, COUNT, VERSION, TRAINER_START, TRAINER_STOP } question;

/* ask(question, engine, text): text or a number, at once. */
static napi_value ask(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS];
    addon *a = arguments_of(env, info, arguments);
    apa_engine *engine = engine_of(a, arguments[1]);
    apa_error *error = NULL;
    apa_string *string = NULL;
    apa_status status = APA_ERR_ARG;
    int32_t question = -1;
    size_t length, count = 0;
    uint64_t version = 0;
    char *text = string_of(a, arguments[2], &length);

    if (!text)
        return NULL;
    napi_get_value_int32(env, arguments[0], &question);
    switch (question) {
    case STATUS:
        status = apa_engine_status(engine, &string, &error);
        break;
    case METRICS:
        status = apa_engine_metrics(engine, &string, &error);
        break;
    case RENDER:
        status = apa_chat_render(engine, text, length, &string, NULL, &error);
        break;
    case COUNT:
        status = apa_token_count(engine, text, length, &count, &error);
        break;
    case VERSION:
        status = apa_policy_version(engine, &version, &error);
        break;
    case TRAINER_START:
        status = apa_trainer_start(engine, &error);
        break;
    case TRAINER_STOP:
        status = apa_trainer_stop(engine, &error);
        break;
    }
    free(text);
    if (status < 0)
        return throw_error(a, status, error);
    return string ? text_of(env, string) : number_of(env, (double)(question == COUNT ? count : version));
}

/* start(engine, request | null for events | undefined for answers): [object, id, name of the generation]. */
static napi_value start(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS], result, element;
    addon *a = arguments_of(env, info, arguments);
    apa_engine *engine = engine_of(a, arguments[0]);
    napi_valuetype type = napi_undefined;
    apa_gen *generation = NULL;
    apa_feed *feed = NULL;
    apa_error *error = NULL;
    apa_string *name = NULL;
    apa_status status;
    size_t length;
    char *text;
    object *o;

    napi_typeof(env, arguments[1], &type);
    o = new_object(a, type == napi_string ? GENERATION : FEED);
    if (!o)
        return NULL;
    if (type == napi_string) {
        text = string_of(a, arguments[1], &length);
        status = text ? apa_gen_start(engine, text, length, &generation, &error) : APA_ERR_NOMEM;
        free(text);
        if (status == APA_OK)
            status = apa_gen_id(generation, &name, &error);
        if (status == APA_OK)
            status = apa_gen_set_wake(generation, wake, o, &error);
        o->handle = generation;
    } else {
        status = type == napi_null ? apa_events_open(engine, &feed, &error) : apa_rewards_open(engine, &feed, &error);
        if (status == APA_OK)
            status = apa_feed_set_wake(feed, wake, o, &error);
        o->handle = feed;
    }
    o->freed = o->handle == NULL;
    if (status != APA_OK) {
        free_handle(o);
        unlink_object(o);
        free(o);
        apa_string_free(name);
        return throw_error(a, status, error);
    }
    napi_create_array_with_length(env, 3, &result);
    napi_create_uint32(env, o->id, &element);
    napi_set_element(env, result, 1, element);
    if (name)
        napi_set_element(env, result, 2, text_of(env, name));
    element = external_of(a, o);
    if (!element)
        return NULL;
    napi_set_element(env, result, 0, element);
    return result;
}

/* next(object): text, or the number of the status if there is none. */
static napi_value next(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS];
    addon *a = arguments_of(env, info, arguments);
    object *o = object_of(a, arguments[0]);
    apa_string *text = NULL;
    apa_error *error = NULL;
    apa_status status;

    if (o && o->kind == FEED)
        status = apa_feed_next(o->handle, 0, &text, &error);
    else
        status = apa_gen_next(o && o->kind == GENERATION ? o->handle : NULL, 0, &text, &error);
    if (status < 0)
        return throw_error(a, status, error);
    return status == APA_OK ? text_of(env, text) : number_of(env, status);
}

/* result(generation): its JSON. */
static napi_value result(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS];
    addon *a = arguments_of(env, info, arguments);
    object *o = object_of(a, arguments[0]);
    apa_string *text = NULL;
    apa_error *error = NULL;
    apa_status status = apa_gen_result(o && o->kind == GENERATION ? o->handle : NULL, &text, &error);

    return status < 0 ? throw_error(a, status, error) : text_of(env, text);
}

/* cancel(generation) */
static napi_value cancel(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS];
    addon *a = arguments_of(env, info, arguments);
    object *o = object_of(a, arguments[0]);

    if (o && o->kind == GENERATION)
        apa_gen_cancel(o->handle, NULL);
    return NULL;
}

/* free(generation or feed) */
static napi_value free_now(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS];
    addon *a = arguments_of(env, info, arguments);
    object *o = object_of(a, arguments[0]);

    if (o && o->kind != ENGINE && o->addon) {
        free_handle(o);
        unlink_object(o);
    }
    return NULL;
}

/* hold(1 | -1) */
static napi_value hold_now(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS];
    addon *a = arguments_of(env, info, arguments);
    int32_t change = 0;

    napi_get_value_int32(env, arguments[0], &change);
    hold(a, change);
    return NULL;
}

/* log(level): keeps lines of the log up to it; 0 keeps none. */
static napi_value log_now(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS];
    addon *a = arguments_of(env, info, arguments);
    apa_error *error = NULL;
    apa_status status;
    int32_t level = 0;

    napi_get_value_int32(env, arguments[0], &level);
    status = set_log(a, level, &error);
    return status < 0 ? throw_error(a, status, error) : NULL;
}

/* lines(): [how many were dropped, the lines that are kept]. */
static napi_value lines(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS], result, value;
    addon *a = arguments_of(env, info, arguments);
    uint32_t missed, i = 1;
    line *l, *rest = take_lines(a, &missed);

    napi_create_array(env, &result);
    napi_set_element(env, result, 0, number_of(env, missed));
    while ((l = rest) != NULL) {
        rest = l->next;
        if (napi_create_string_utf8(env, l->json, l->length, &value) == napi_ok)
            napi_set_element(env, result, i++, value);
        free(l);
    }
    return result;
}

/* Ends all that runs, and waits for it. */
static void end_all(addon *a)
{
    object *o;

    pthread_mutex_lock(&a->lock);
    a->closing = true;
    pthread_mutex_unlock(&a->lock);
    while ((o = a->objects) != NULL) {
        free_handle(o);
        unlink_object(o);
    }
    finish_jobs(a);
}

/* endAll(): for the exit of the process, which runs no clean-up of its threads. */
static napi_value end_now(napi_env env, napi_callback_info info)
{
    napi_value arguments[MOST_ARGUMENTS];
    end_all(arguments_of(env, info, arguments));
    return NULL;
}

static void clean_up(void *data)
{
    addon *a = data;
    end_all(a);
    drop_log(a);
    napi_release_threadsafe_function(a->loop, napi_tsfn_abort);
    pthread_mutex_destroy(&a->lock);
    pthread_cond_destroy(&a->idle);
    free(a);
}

static napi_value init(napi_env env, napi_value exports)
{
    static const struct {
        const char *name;
        napi_callback function;
    } functions[] = {{"setup", setup},   {"call", call},         {"ask", ask},       {"start", start},     {"next", next},
                     {"result", result}, {"cancel", cancel},     {"free", free_now}, {"hold", hold_now},   {"endAll", end_now},
                     {"log", log_now},   {"lines", lines}};
    napi_value name, value;
    addon *a = calloc(1, sizeof *a);
    size_t i;

    if (!a) {
        napi_throw_error(env, NULL, "memory ran out");
        return NULL;
    }
    a->env = env;
    a->lanes[QUICK].most = 4;
    a->lanes[SLOW].most = 8;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->idle, NULL);
    napi_create_string_utf8(env, "apa", NAPI_AUTO_LENGTH, &name);
    if (napi_create_threadsafe_function(env, NULL, NULL, name, 0, 1, NULL, NULL, a, drain, &a->loop) != napi_ok) {
        free(a);
        napi_throw_error(env, NULL, "the event loop can't be reached");
        return NULL;
    }
    napi_unref_threadsafe_function(env, a->loop);
    /* After the loop's own: clean-ups run in the opposite order. */
    napi_add_env_cleanup_hook(env, clean_up, a);
    for (i = 0; i < sizeof functions / sizeof *functions; i++) {
        napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].function, a, &value);
        napi_set_named_property(env, exports, functions[i].name, value);
    }
    napi_set_named_property(env, exports, "abiVersion", number_of(env, apa_abi_version()));
    napi_set_named_property(env, exports, "headerVersion", number_of(env, APA_ABI_VERSION));
    napi_create_string_utf8(env, apa_version(), NAPI_AUTO_LENGTH, &value);
    napi_set_named_property(env, exports, "version", value);
    return exports;
}

NAPI_MODULE(NODE_GYP_MODULE_NAME, init)
