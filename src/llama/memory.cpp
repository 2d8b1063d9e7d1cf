// Gives the system back what llama.cpp holds and doesn't use: the pages of caches that nothing was written to yet, and what was freed.
// Never changes what a buffer holds.
//
// A cache of keys and values is cleared by writing zeros, which makes all of it resident: a gigabyte for 8,192 tokens of an 8B model,
// for each context. Pages of zeros are what the system has anyway, so a buffer is cleared by giving its pages back.
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__linux__)
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "ggml-backend.h"

extern "C" {
void apa_memory_install(void) noexcept;
void apa_memory_trim(void) noexcept;
}

#if defined(__linux__)

// What ggml's own sources declare in headers that it doesn't install; of the pinned version of llama-cpp-sys-2.
struct ggml_backend_buffer_type {
    const char * (*get_name)(ggml_backend_buffer_type_t);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
};
struct ggml_backend_buffer {
    void * (*free_buffer)(ggml_backend_buffer_t);
    void * (*get_base)(ggml_backend_buffer_t);
    void * others[7];
    void (*clear)(ggml_backend_buffer_t, uint8_t);
    void * reset;
    ggml_backend_buffer_type_t type;
    void * context;
    size_t size;
};

namespace {

ggml_backend_buffer_t (*allocate)(ggml_backend_buffer_type_t, size_t);  // ggml's own

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    auto * base = (uint8_t *) buffer->get_base(buffer);
    const uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE), from = (uintptr_t) base, to = from + buffer->size;
    const uintptr_t first = (from + page - 1) / page * page, last = to / page * page;
    // The allocator's memory is private and of no file: what is given back is zeros when it is looked at again.
    if (value == 0 && first < last && madvise((void *) first, last - first, MADV_DONTNEED) == 0) {
        std::memset(base, 0, first - from);
        std::memset((void *) last, 0, to - last);
    } else {
        std::memset(base, value, buffer->size);
    }
}

ggml_backend_buffer_t allocate_to_clear(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = allocate(type, size);
    if (buffer) buffer->clear = clear;
    return buffer;
}

}  // namespace

// Once, before the first buffer is made.
void apa_memory_install(void) noexcept {
    ggml_backend_buffer_type_t cpu = ggml_backend_cpu_buffer_type();
    allocate = cpu->alloc_buffer;
    cpu->alloc_buffer = allocate_to_clear;
}

// What reading a model's file left behind: its table and vocabulary pass through memory several times.
void apa_memory_trim(void) noexcept {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

#else

void apa_memory_install(void) noexcept {}
void apa_memory_trim(void) noexcept {}

#endif
