/* Runs cases.json through the C API: run CASES MODEL DATA. Prints a line a step: case, step, status, value. It judges nothing: who
 * runs it compares the lines with what the cases expect and with those of the other languages. */
#define _POSIX_C_SOURCE 200809L
#include <apa.h>
#include <pthread.h>
#include <stdio.h>

#include "json.h"

enum { NAMES = 16, ALIKE = 64 };

typedef struct {
    const char *names[NAMES]; /* JSON strings in the cases. */
    void *handles[NAMES];
} table;

static table engines, generations;
static const char *model, *data;

static void **slot(table *t, const char *name)
{
    int i;
    for (i = 0; i < NAMES && t->names[i]; i++)
        if (strncmp(t->names[i], name, (size_t)(json_end(name) - name)) == 0)
            return &t->handles[i];
    if (i == NAMES)
        abort();
    t->names[i] = name;
    return &t->handles[i];
}

static void *handle(table *t, const char *step, const char *key)
{
    return *slot(t, json_member(step, key));
}

/* Whether a JSON string is this word. */
static int is(const char *value, const char *word)
{
    return value && strncmp(value + 1, word, strlen(word)) == 0 && value[1 + strlen(word)] == '"';
}

static const char *name_of(apa_status status)
{
    static const char *const positive[] = {"OK", "DONE", "TIMEOUT", "CANCELLED"};
    static const char *const negative[] = {"",   "ARG",      "CLOSED",      "BUSY",  "MODEL", "TRAIN",
                                           "IO", "CALLBACK", "UNSUPPORTED", "NOMEM", "PANIC"};
    return status >= 0 ? positive[status] : negative[-status];
}

static void hex(const char *text, size_t length)
{
    size_t i;
    for (i = 0; i < length; i++)
        printf("%02x", (unsigned char)text[i]);
}

/* What a step gave. */
typedef struct {
    apa_status status;
    apa_error *error;
    apa_string *string;
    char value[64];
} outcome;

/* The text of a step: as it is, from bytes, or a piece many times. */
static char *text_of(const char *step, const char *repeat, size_t *length)
{
    const char *member;
    char *text, *piece;
    size_t i, times, size;

    if ((member = json_member(step, repeat)) != NULL) {
        piece = json_string(json_first(member), &size);
        times = strtoul(json_next(json_first(member)), NULL, 10);
        text = malloc(size * times + 1);
        for (i = 0; i < times; i++)
            memcpy(text + i * size, piece, size);
        free(piece);
        *length = size * times;
        return text;
    }
    if ((member = json_member(step, "hex")) != NULL) {
        *length = (size_t)(json_end(member) - member - 2) / 2;
        text = malloc(*length + 1);
        for (i = 0; i < *length; i++) {
            char digits[3] = {member[1 + 2 * i], member[2 + 2 * i], 0};
            text[i] = (char)strtoul(digits, NULL, 16);
        }
        return text;
    }
    return json_string(json_member(step, "text"), length);
}

/* The request of a step; to be freed. */
static char *request_of(const char *step, size_t *length)
{
    const char *request = json_member(step, "request");
    size_t size = (size_t)(json_end(request) - request);
    char *body, *prompt;

    if (!json_member(step, "prompt_repeat")) {
        body = malloc(size);
        memcpy(body, request, size);
        *length = size;
        return body;
    }
    prompt = text_of(step, "prompt_repeat", length);
    body = malloc(*length + size + 16);
    memcpy(body, "{\"prompt\":\"", 11);
    memcpy(body + 11, prompt, *length);
    memcpy(body + 11 + *length, "\",", 2);
    memcpy(body + 13 + *length, request + 1, size - 1);
    *length += 12 + size;
    free(prompt);
    return body;
}

static void open_engine(const char *step, outcome *o)
{
    static const char common[] = "{\"serve\":{\"context\":4096,\"threads\":1,\"speculate\":false},\"train\":{\"auto\":false,\"threads\":1}}";
    const char *setting = json_member(step, "setting"), *value;
    apa_options *options = NULL;
    apa_engine *engine = NULL;
    char path[4096], *name;
    size_t length;

    o->status = apa_options_new(&options, &o->error);
    name = json_string(json_member(step, "data"), &length);
    snprintf(path, sizeof path, "%s/%s", data, name);
    free(name);
    if (o->status == APA_OK)
        o->status = apa_options_set(options, "data", APA_NTS, path, APA_NTS, &o->error);
    snprintf(path, sizeof path, "%s/missing.gguf", data);
    if (o->status == APA_OK)
        o->status = apa_options_set(options, "model", APA_NTS, json_member(step, "model") ? path : model, APA_NTS, &o->error);
    if (o->status == APA_OK)
        o->status = apa_options_set_json(options, "", 0, common, APA_NTS, &o->error);
    if (o->status == APA_OK && setting) {
        name = json_string(json_first(setting), &length);
        value = json_next(json_first(setting));
        o->status = apa_options_set_json(options, name, length, value, (size_t)(json_end(value) - value), &o->error);
        free(name);
    }
    if (o->status == APA_OK)
        o->status = apa_engine_open(options, &engine, &o->error);
    if (o->status == APA_OK)
        *slot(&engines, json_member(step, "engine")) = engine;
    apa_options_free(options);
}

static void pull(apa_gen *gen, int quiet, outcome *o)
{
    apa_string *piece = NULL;
    while ((o->status = apa_gen_next(gen, -1, &piece, &o->error)) == APA_OK) {
        if (!quiet)
            hex(apa_string_data(piece), apa_string_len(piece));
        apa_string_free(piece);
    }
}

typedef struct {
    apa_engine *engine;
    const char *request;
    size_t length;
    apa_status status;
} one;

static void *generate(void *argument)
{
    one *o = argument;
    o->status = apa_generate(o->engine, o->request, o->length, NULL, NULL, NULL, NULL);
    return NULL;
}

static void many(const char *step, outcome *o)
{
    pthread_t threads[ALIKE];
    one all[ALIKE];
    int i, done = 0, count = atoi(json_member(step, "threads"));
    size_t length;
    char *body = request_of(step, &length);

    for (i = 0; i < count && i < ALIKE; i++) {
        all[i].engine = handle(&engines, step, "engine");
        all[i].request = body;
        all[i].length = length;
        pthread_create(&threads[i], NULL, generate, &all[i]);
    }
    for (i = 0; i < count && i < ALIKE; i++) {
        pthread_join(threads[i], NULL);
        done += all[i].status == APA_DONE;
    }
    free(body);
    snprintf(o->value, sizeof o->value, "%d", done);
}

/* Every call with NULL where it is not allowed; the first that is no argument error, or ARG. */
static apa_status all_null(void)
{
    apa_string *s = NULL;
    apa_gen *g = NULL;
    apa_feed *f = NULL;
    apa_engine *e = NULL;
    uint64_t v = 0;
    size_t n = 0, i;
    const apa_status all[] = {
        apa_options_new(NULL, NULL), apa_options_set(NULL, "a", 1, "b", 1, NULL), apa_options_set_json(NULL, "a", 1, "1", 1, NULL),
        apa_engine_open(NULL, &e, NULL), apa_engine_shutdown(NULL, NULL), apa_engine_status(NULL, &s, NULL),
        apa_engine_metrics(NULL, &s, NULL), apa_token_count(NULL, NULL, 1, &n, NULL), apa_chat_render(NULL, NULL, 0, &s, &n, NULL),
        apa_gen_start(NULL, NULL, 0, &g, NULL), apa_gen_id(NULL, &s, NULL), apa_gen_next(NULL, 0, &s, NULL),
        apa_gen_result(NULL, &s, NULL), apa_gen_cancel(NULL, NULL), apa_gen_set_wake(NULL, NULL, NULL, NULL),
        apa_generate(NULL, NULL, 0, NULL, NULL, &s, NULL), apa_feedback(NULL, NULL, 0, &s, NULL),
        apa_preference(NULL, NULL, 0, &s, NULL), apa_sample_add(NULL, NULL, 0, &s, NULL), apa_trainer_start(NULL, NULL), apa_forget(NULL, "a", 1, &s, NULL),
        apa_unlearn(NULL, "a", 1, &s, NULL), apa_unlearn_plan(NULL, "a", 1, &s, NULL),
        apa_trainer_stop(NULL, NULL), apa_trainer_step(NULL, &s, NULL), apa_trainer_status(NULL, &s, NULL),
        apa_policy_version(NULL, &v, NULL), apa_policy_sync(NULL, &v, NULL), apa_policy_activate(NULL, 0, NULL), apa_policy_rollback(NULL, &v, NULL),
        apa_policy_snapshot(NULL, 1, "a", 1, NULL), apa_policy_restore(NULL, "a", 1, &v, NULL), apa_policy_list(NULL, &s, NULL),
        apa_events_open(NULL, &f, NULL), apa_rewards_open(NULL, &f, NULL), apa_feed_next(NULL, 0, &s, NULL),
        apa_feed_set_wake(NULL, NULL, NULL, NULL), apa_reward_put(NULL, NULL, 0, 0.0, NULL), apa_reward_set(NULL, NULL, NULL, NULL),
        apa_http_start(NULL, NULL, 0, &s, NULL), apa_http_stop(NULL, NULL),
    };
    apa_engine_free(NULL);
    apa_gen_free(NULL);
    apa_feed_free(NULL);
    apa_options_free(NULL);
    apa_string_free(NULL);
    apa_error_free(NULL);
    for (i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i] != APA_ERR_ARG)
            return all[i];
    return s || g || f || e ? APA_ERR_PANIC : APA_ERR_ARG;
}

static void run(const char *step, outcome *o)
{
    const char *op = json_member(step, "op"), *member;
    const char *gen_name = json_member(step, "gen");
    void *engine = json_member(step, "engine") ? handle(&engines, step, "engine") : NULL;
    apa_gen *gen = gen_name ? handle(&generations, step, "gen") : NULL;
    uint64_t number = 0;
    size_t length, count = 0;
    char *text;

    if (is(op, "open")) {
        open_engine(step, o);
    } else if (is(op, "close")) {
        apa_engine_free(engine);
    } else if (is(op, "start")) {
        text = request_of(step, &length);
        gen = NULL;
        o->status = apa_gen_start(engine, text, length, &gen, &o->error);
        free(text);
        if (o->status == APA_OK) {
            apa_gen_free(*slot(&generations, gen_name));
            *slot(&generations, gen_name) = gen;
        }
    } else if (is(op, "pull")) {
        pull(gen, json_member(step, "quiet") != NULL, o);
    } else if (is(op, "next")) {
        apa_string *piece = NULL;
        o->status = apa_gen_next(gen, atoi(json_member(step, "timeout_ms")), &piece, &o->error);
        apa_string_free(piece);
    } else if (is(op, "cancel")) {
        o->status = apa_gen_cancel(gen, &o->error);
    } else if (is(op, "free")) {
        apa_gen_free(gen);
    } else if (is(op, "result")) {
        o->status = apa_gen_result(gen, &o->string, &o->error);
        if (o->status == APA_OK) {
            const char *json = apa_string_data(o->string);
            member = json_member(json, "finish_reason");
            snprintf(o->value, sizeof o->value, "%.*s %d", (int)(json_end(member) - member - 2), member + 1,
                     atoi(json_member(json, "policy_version")));
        }
    } else if (is(op, "feedback")) {
        char body[256];
        apa_string *id = NULL;
        if (gen)
            o->status = apa_gen_id(gen, &id, &o->error);
        member = json_member(step, "rating");
        snprintf(body, sizeof body, "{\"generation_id\":\"%s\",\"rating\":%.*s}", gen ? apa_string_data(id) : "nobody",
                 (int)(json_end(member) - member), member);
        o->status = apa_feedback(engine, body, APA_NTS, NULL, &o->error);
        apa_string_free(id);
    } else if (is(op, "step")) {
        o->status = apa_trainer_step(engine, &o->string, &o->error);
        if (o->status == APA_OK) {
            member = json_member(apa_string_data(o->string), "outcome");
            snprintf(o->value, sizeof o->value, "%.*s", (int)(json_end(member) - member - 2), member + 1);
        }
    } else if (is(op, "policy") || is(op, "rollback") || is(op, "sync")) {
        o->status = is(op, "policy") ? apa_policy_version(engine, &number, &o->error)
                    : is(op, "sync") ? apa_policy_sync(engine, &number, &o->error)
                                     : apa_policy_rollback(engine, &number, &o->error);
        if (o->status == APA_OK)
            snprintf(o->value, sizeof o->value, "%d", (int)number);
    } else if (is(op, "activate")) {
        o->status = apa_policy_activate(engine, (uint64_t)atoi(json_member(step, "version")), &o->error);
    } else if (is(op, "versions")) {
        o->status = apa_policy_list(engine, &o->string, &o->error);
        if (o->status == APA_OK)
            for (member = json_first(apa_string_data(o->string)); member; member = json_next(member))
                count++;
        snprintf(o->value, sizeof o->value, "%d", (int)count);
    } else if (is(op, "count")) {
        text = text_of(step, "text_repeat", &length);
        o->status = apa_token_count(engine, text, length, &count, &o->error);
        free(text);
        if (o->status == APA_OK)
            snprintf(o->value, sizeof o->value, "%d", (int)count);
    } else if (is(op, "render")) {
        member = json_member(step, "messages");
        o->status = apa_chat_render(engine, member, (size_t)(json_end(member) - member), &o->string, NULL, &o->error);
        if (o->status == APA_OK)
            hex(apa_string_data(o->string), apa_string_len(o->string));
    } else if (is(op, "many")) {
        many(step, o);
    } else if (is(op, "null")) {
        o->status = all_null();
    } else {
        abort();
    }
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    char *text;
    long size;
    if (!file || fseek(file, 0, SEEK_END) || (size = ftell(file)) < 0)
        return NULL;
    rewind(file);
    text = malloc((size_t)size + 1);
    text[fread(text, 1, (size_t)size, file)] = 0;
    fclose(file);
    return text;
}

int main(int argc, char **argv)
{
    const char *test, *step, *word;
    char *cases = argc == 4 ? read_file(argv[1]) : NULL;
    int i, number;

    if (!cases) {
        fprintf(stderr, "usage: run CASES MODEL DATA\n");
        return 2;
    }
    model = argv[2];
    data = argv[3];
    for (test = json_first(json_space(cases)); test; test = json_next(test)) {
        number = 0;
        for (step = json_first(json_member(test, "steps")); step; step = json_next(step)) {
            outcome o = {APA_OK, NULL, NULL, ""};
            word = json_member(test, "name");
            printf("%.*s\t%d\t", (int)(json_end(word) - word - 2), word + 1, number++);
            run(step, &o);
            printf("%s\t%s\n", o.value, name_of(o.status));
            apa_error_free(o.error);
            apa_string_free(o.string);
        }
        for (i = 0; i < NAMES; i++) {
            apa_gen_free(generations.handles[i]);
            apa_engine_free(engines.handles[i]);
        }
        memset(&engines, 0, sizeof engines);
        memset(&generations, 0, sizeof generations);
    }
    free(cases);
    return 0;
}
