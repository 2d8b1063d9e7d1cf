// Memory of the emulated device: allocations end at pages that can't be touched, and freed addresses never come back.
#include "machine.h"
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <sys/mman.h>

namespace emu {
namespace {

constexpr size_t page = 4096, alignment = 256, span = size_t{8} << 40;
constexpr unsigned char unwritten = 0xFF;

std::mutex mutex;
std::map<uintptr_t, size_t> &allocations = *new std::map<uintptr_t, size_t>;  // some are freed as the process ends
uintptr_t start, next;
size_t used, peak;

size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Where the bytes lie of an allocation of `bytes` at the pages from `begin` on: at their end.
uintptr_t placed(uintptr_t begin, size_t bytes) { return begin + up(bytes, page) - up(bytes, alignment); }

// The allocation with the highest address up to `address`; needs the lock.
std::map<uintptr_t, size_t>::iterator before(uintptr_t address) {
    auto found = allocations.upper_bound(address);
    return found == allocations.begin() ? allocations.end() : std::prev(found);
}

void *allocate_locked(size_t bytes) {
    if (used + up(bytes, 512) > memory_total()) return nullptr;
    if (!start) {
        void *reserved = mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (reserved == MAP_FAILED) fail("no address space for device memory");
        start = next = reinterpret_cast<uintptr_t>(reserved);
    }
    size_t pages = up(bytes, page);
    if (next + pages + page > start + span) fail("all addresses of device memory have been used once");
    uintptr_t begin = next + page;
    next = begin + pages;
    if (mprotect(reinterpret_cast<void *>(begin), pages, PROT_READ | PROT_WRITE)) return nullptr;
    memset(reinterpret_cast<void *>(begin), unwritten, pages);
    used += up(bytes, 512);
    peak = used > peak ? used : peak;
    uintptr_t address = placed(begin, bytes);
    allocations[address] = bytes;
    return reinterpret_cast<void *>(address);
}

}  // namespace

void *allocate(size_t bytes) {
    std::lock_guard lock(mutex);
    return allocate_locked(bytes);
}

void release(void *pointer) {
    std::lock_guard lock(mutex);
    uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    auto found = allocations.find(address);
    if (found == allocations.end()) fail("free of %p, which is no allocation", pointer);
    size_t bytes = found->second;
    auto *begin = reinterpret_cast<unsigned char *>(address / page * page), *last = begin + up(bytes, page);
    for (auto *p = begin; p < last; p++) {
        if (p == reinterpret_cast<unsigned char *>(address)) p += bytes;
        if (p < last && *p != unwritten) fail("something was written beside an allocation of %zu bytes", bytes);
    }
    used -= up(bytes, 512);
    mmap(begin, up(bytes, page), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    allocations.erase(found);
}

void check_range(const char *who, const void *pointer, size_t bytes) {
    std::lock_guard lock(mutex);
    uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    auto found = before(address);
    if (bytes && (found == allocations.end() || address + bytes > found->first + found->second))
        fail("%s touches %zu bytes at %p, beyond any allocation", who, bytes, pointer);
}

void check_argument(size_t number, const volatile void *pointer) {
    std::lock_guard lock(mutex);
    uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    auto found = before(address);
    if (address && (found == allocations.end() || address > found->first + found->second))
        fail("argument %zu, %p, points to no device memory", number, const_cast<const void *>(pointer));
}

const char *describe(const void *pointer, char *text, size_t room) {
    uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    text[0] = 0;
    if (address < start || address >= next + page || !mutex.try_lock()) return text;
    auto found = before(address);
    if (found != allocations.end() && address < found->first + up(found->second, page) + page)
        snprintf(text, room, "byte %" PRIuPTR " of an allocation of %zu", address - found->first, found->second);
    else
        snprintf(text, room, "freed or never allocated device memory");
    mutex.unlock();
    return text;
}

size_t memory_total() {
    static const size_t total = static_cast<size_t>(setting("EMU_MEMORY_MB", 81559)) << 20;
    return total;
}

size_t memory_free() {
    std::lock_guard lock(mutex);
    return memory_total() - used;
}

void print_memory() {
    std::lock_guard lock(mutex);
    if (!peak) return;
    fprintf(stderr, "emulated CUDA: at most %.1f MB of device memory in use, %.1f MB at the end\n", peak / 1048576.0,
            used / 1048576.0);
}

}  // namespace emu
