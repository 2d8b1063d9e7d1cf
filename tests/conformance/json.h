/* Reads JSON that is known to be well-formed: the cases, and what the library writes. Values are pointers into the text. */
#ifndef CONFORMANCE_JSON_H
#define CONFORMANCE_JSON_H

#include <stdlib.h>
#include <string.h>

static const char *json_space(const char *p)
{
    return p + strspn(p, " \t\r\n");
}

/* The first byte after a value. */
static const char *json_end(const char *p)
{
    int depth = 0;
    do {
        if (*p == '"') {
            for (p++; *p != '"'; p++)
                p += *p == '\\';
            p++;
        } else if (*p == '{' || *p == '[') {
            depth++;
            p++;
        } else if (*p == '}' || *p == ']') {
            depth--;
            p++;
        } else if (depth) {
            p++;
        } else {
            return p + strcspn(p, ",]} \t\r\n");
        }
    } while (depth);
    return p;
}

/* The first element of an array or key of an object, then the next one; NULL at the end. */
static const char *json_first(const char *p)
{
    p = json_space(p + 1);
    return *p == ']' || *p == '}' ? NULL : p;
}

static const char *json_next(const char *p)
{
    p = json_space(json_end(p));
    return *p == ',' ? json_space(p + 1) : NULL;
}

/* The value of a key; NULL without it. */
static const char *json_member(const char *object, const char *key)
{
    const char *p;
    for (p = json_first(object); p; p = json_next(p)) {
        size_t length = strlen(key);
        const char *value = json_space(json_end(p));
        value = json_space(value + 1);
        if (strncmp(p + 1, key, length) == 0 && p[1 + length] == '"')
            return value;
        p = value;
    }
    return NULL;
}

static unsigned json_hex(const char *p)
{
    char digits[5] = {0};
    memcpy(digits, p, 4);
    return (unsigned)strtoul(digits, NULL, 16);
}

/* The text of a string, with its length; to be freed. */
static char *json_string(const char *p, size_t *length)
{
    char *text = (char *)malloc((size_t)(json_end(p) - p) * 2), *out = text;
    for (p++; *p != '"'; p++) {
        if (*p != '\\') {
            *out++ = *p;
            continue;
        }
        p++;
        if (*p == 'u') {
            unsigned c = json_hex(p + 1);
            p += 4;
            if (c >= 0xd800 && c < 0xdc00) {
                c = 0x10000 + ((c - 0xd800) << 10) + (json_hex(p + 3) - 0xdc00);
                p += 6;
            }
            if (c < 0x80) {
                *out++ = (char)c;
            } else if (c < 0x800) {
                *out++ = (char)(0xc0 | c >> 6);
                *out++ = (char)(0x80 | (c & 63));
            } else {
                if (c < 0x10000) {
                    *out++ = (char)(0xe0 | c >> 12);
                } else {
                    *out++ = (char)(0xf0 | c >> 18);
                    *out++ = (char)(0x80 | (c >> 12 & 63));
                }
                *out++ = (char)(0x80 | (c >> 6 & 63));
                *out++ = (char)(0x80 | (c & 63));
            }
        } else {
            const char *escape = strchr("n\nt\tr\rb\bf\f", *p);
            *out++ = escape && *p != '"' && *p != '\\' && *p != '/' ? escape[1] : *p;
        }
    }
    *out = 0;
    *length = (size_t)(out - text);
    return text;
}

#endif
