/* Measures the C API on a tiny model: stress MODEL DATA. Prints numbers as JSON: what a token costs that is there already, how long a
 * cancelled stream lives on, and what memory streams and engines leave behind. */
#define _POSIX_C_SOURCE 200809L
#include <apa.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { STREAMS = 1000, OPENS = 200, TOKENS = 20000 };

static const char *model, *data;

static apa_status check(apa_status status, apa_error *error)
{
    if (status < 0) {
        fprintf(stderr, "stress: %s\n", apa_error_message(error));
        exit(1);
    }
    return status;
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* Memory of the process that is in use, in KB. */
static long resident(void)
{
    long pages = 0, size = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file) {
        if (fscanf(file, "%ld %ld", &size, &pages) != 2)
            pages = 0;
        fclose(file);
    }
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static apa_engine *open_engine(const char *slots)
{
    apa_options *options = NULL;
    apa_engine *engine = NULL;
    apa_error *error = NULL;
    check(apa_options_new(&options, &error), error);
    check(apa_options_set(options, "model", APA_NTS, model, APA_NTS, &error), error);
    check(apa_options_set(options, "data", APA_NTS, data, APA_NTS, &error), error);
    check(apa_options_set(options, "serve.slots", APA_NTS, slots, APA_NTS, &error), error);
    check(apa_options_set(options, "serve.queue", APA_NTS, "2000", APA_NTS, &error), error);
    check(apa_options_set(options, "serve.context", APA_NTS, "1024", APA_NTS, &error), error);
    check(apa_options_set(options, "serve.threads", APA_NTS, "1", APA_NTS, &error), error);
    check(apa_options_set(options, "train.threads", APA_NTS, "1", APA_NTS, &error), error);
    check(apa_engine_open(options, &engine, &error), error);
    apa_options_free(options);
    return engine;
}

/* It never ends an answer before its limit: the tokens that would are banned. */
static apa_gen *start(apa_engine *engine)
{
    static const char request[] = "{\"prompt\":\"the\",\"max_tokens\":900,\"logit_bias\":{\"285\":-100,\"286\":-100,\"287\":-100}}";
    apa_gen *gen = NULL;
    apa_error *error = NULL;
    check(apa_gen_start(engine, request, APA_NTS, &gen, &error), error);
    return gen;
}

/* Time of a token that waits to be pulled, in microseconds. */
static double token_us(apa_engine *engine)
{
    double spent = 0;
    long read = 0;
    while (read < TOKENS) {
        apa_string *piece = NULL, *status = NULL;
        apa_error *error = NULL;
        apa_gen *gen = start(engine);
        int busy = 1;
        while (busy) {
            const struct timespec pause = {0, 1000000};
            nanosleep(&pause, NULL);
            check(apa_engine_status(engine, &status, &error), error);
            busy = strstr(apa_string_data(status), "\"running\":0") == NULL || strstr(apa_string_data(status), "\"queued\":0") == NULL;
            apa_string_free(status);
        }
        double began = now_us(), last = began;
        while (check(apa_gen_next(gen, -1, &piece, &error), error) == APA_OK) {
            apa_string_free(piece);
            last = now_us();
            read++;
        }
        spent += last - began;
        apa_gen_free(gen);
    }
    return spent / (double)read;
}

static int smaller(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* Opens all streams, then cancels each and waits for its end, or cancels all first: the times in ms, smallest first. */
static void cancel_ms(apa_engine *engine, int together, double *times)
{
    static apa_gen *all[STREAMS];
    static double began[STREAMS];
    apa_error *error = NULL;
    apa_string *piece = NULL;
    int i;
    for (i = 0; i < STREAMS; i++)
        all[i] = start(engine);
    for (i = 0; together && i < STREAMS; i++) {
        began[i] = now_us();
        check(apa_gen_cancel(all[i], &error), error);
    }
    for (i = 0; i < STREAMS; i++) {
        if (!together) {
            began[i] = now_us();
            check(apa_gen_cancel(all[i], &error), error);
        }
        while (check(apa_gen_next(all[i], -1, &piece, &error), error) == APA_OK)
            apa_string_free(piece);
        times[i] = (now_us() - began[i]) / 1e3;
        apa_gen_free(all[i]);
    }
    qsort(times, STREAMS, sizeof *times, smaller);
}

int main(int argc, char **argv)
{
    static double times[STREAMS], at_once[STREAMS];
    long before, streams, opens;
    double token;
    apa_engine *engine;
    int i;

    if (argc != 3) {
        fprintf(stderr, "usage: stress MODEL DATA\n");
        return 2;
    }
    model = argv[1];
    data = argv[2];
    engine = open_engine("8");
    token = token_us(engine);
    cancel_ms(engine, 1, at_once); /* Once for what is made once. */
    before = resident();
    cancel_ms(engine, 0, times);
    cancel_ms(engine, 1, at_once);
    streams = resident() - before;
    apa_engine_free(engine);
    for (i = 0; i < OPENS / 4; i++)
        apa_engine_free(open_engine("1"));
    before = resident();
    for (; i < OPENS; i++)
        apa_engine_free(open_engine("1"));
    opens = resident() - before;
    printf("{\"token_us\": %.3f, \"cancel_ms_median\": %.2f, \"cancel_ms_p99\": %.2f, \"cancel_ms_worst\": %.2f, "
           "\"cancel_all_ms_median\": %.2f, \"cancel_all_ms_worst\": %.2f, \"streams_kb\": %ld, "
           "\"opens_kb\": %ld}\n",
           token, times[STREAMS / 2], times[STREAMS * 99 / 100], times[STREAMS - 1], at_once[STREAMS / 2],
           at_once[STREAMS - 1], streams, opens);
    return 0;
}
