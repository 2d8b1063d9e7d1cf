/* The whole loop on one page: talk, rate, learn, talk again, go back.
 *
 *   cargo build --release
 *   cc -std=c99 -Iinclude examples/embed.c -Ltarget/release -lapa -Wl,-rpath,target/release -o embed
 *   ./embed MODEL.gguf DATA_DIR
 */
#include <apa.h>
#include <stdio.h>
#include <stdlib.h>

enum { ANSWERS = 16, WANTED = 80 };

/* Written by a call that fails. */
static apa_error *error;

/* Ends the program with the library's sentence if a call failed; else hands its outcome on. */
static apa_status check(apa_status status)
{
    if (status < 0) {
        fprintf(stderr, "embed: %s\n", apa_error_message(error));
        apa_error_free(error);
        exit(1);
    }
    return status;
}

/* Streams an answer to standard output; returns its id, which names it for feedback, and its length in bytes. */
static apa_string *talk(apa_engine *engine, const char *question, size_t *length)
{
    char request[512];
    apa_gen *gen = NULL;
    apa_string *id = NULL, *piece = NULL;

    snprintf(request, sizeof request,
             "{\"messages\": [{\"role\": \"user\", \"content\": \"%s\"}], \"max_tokens\": 64}", question);
    *length = 0;
    check(apa_gen_start(engine, request, APA_NTS, &gen, &error));
    while (check(apa_gen_next(gen, -1, &piece, &error)) == APA_OK) {
        fwrite(apa_string_data(piece), 1, apa_string_len(piece), stdout);
        *length += apa_string_len(piece);
        apa_string_free(piece);
    }
    putchar('\n');
    check(apa_gen_id(gen, &id, &error));
    apa_gen_free(gen);
    return id;
}

/* Likes answers of about WANTED letters: 1 at that length, falling towards -1. */
static void rate(apa_engine *engine, const apa_string *id, size_t length)
{
    char feedback[256];
    double rating = 2.0 * WANTED / (WANTED + labs((long)length - WANTED)) - 1.0;

    snprintf(feedback, sizeof feedback, "{\"generation_id\": \"%s\", \"rating\": %.3f}", apa_string_data(id),
             rating);
    check(apa_feedback(engine, feedback, APA_NTS, NULL, &error));
}

int main(int argc, char **argv)
{
    apa_options *options = NULL;
    apa_engine *engine = NULL;
    apa_string *outcome = NULL, *id;
    uint64_t first = 0, learned = 0, back = 0;
    size_t length = 0;
    int i;

    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL.gguf DATA_DIR\n", argv[0]);
        return 2;
    }
    check(apa_options_new(&options, &error));
    check(apa_options_set(options, "model", APA_NTS, argv[1], APA_NTS, &error));
    check(apa_options_set(options, "data", APA_NTS, argv[2], APA_NTS, &error));
    /* This program says when to train; by default the engine does so by itself. */
    check(apa_options_set(options, "train.auto", APA_NTS, "false", APA_NTS, &error));
    check(apa_engine_open(options, &engine, &error));
    apa_options_free(options);
    check(apa_policy_version(engine, &first, &error));

    for (i = 0; i < ANSWERS; i++) {
        id = talk(engine, "Name a colour.", &length);
        rate(engine, id, length);
        apa_string_free(id);
    }

    check(apa_trainer_step(engine, &outcome, &error));
    printf("training: %s\n", apa_string_data(outcome));
    apa_string_free(outcome);
    check(apa_policy_version(engine, &learned, &error));
    if (learned == first) {
        fprintf(stderr, "embed: the step published no version\n");
        return 1;
    }
    apa_string_free(talk(engine, "Name a colour.", &length));

    check(apa_policy_rollback(engine, &back, &error));
    printf("versions: %lu, then %lu, back to %lu\n", (unsigned long)first, (unsigned long)learned, (unsigned long)back);
    apa_engine_free(engine);
    return 0;
}
