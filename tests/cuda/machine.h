// The emulated device as its parts see each other: memory, and threads of a kernel. libcuda.so.1 holds it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

struct Dim {
    unsigned x, y, z;
};

// What a kernel knows of itself: the thread that the current CPU thread runs.
struct Position {
    Dim thread, block, block_size, grid_size;
    char *dynamic_shared;
};
extern __thread const Position *position __attribute__((tls_model("initial-exec")));

// What a warp's lanes told each other in one operation.
struct Collective {
    uint64_t values[32];
    unsigned lanes;  // those that took part
};

// Waits for every thread of the block.
void barrier();
// Waits for the lanes of `mask` that are still running, and gives what each of them told.
const Collective &collective(unsigned mask, uint64_t value);
unsigned lane();

// A kernel: its name, and functions that call it with the launch's arguments, and look at those first.
struct Kernel {
    const char *name;
    void (*call)(void **arguments);
    void (*check)(void **arguments);
    // Gives the address of something in the module's static shared memory, which is unwritten when a block begins; or
    // null.
    void *(*shared)() = nullptr;
    long launches = 0;
    double seconds = 0;
    unsigned dynamic_shared = 48 << 10;  // the most that a launch may ask for
};
struct Launch {
    Kernel *kernel;
    void **arguments;
    Dim grid, block;
    unsigned dynamic_shared;
};
void launch(const Launch &launch);
void run_block(const Launch &launch, Dim block);
// Whether what has no order is done last to first.
bool reversed();

// Null if the device has no room. Unwritten memory holds 0xFF: NaN, or an index that is out of range.
void *allocate(size_t bytes);
void release(void *address);
// Ends the process unless the bytes lie within one allocation; says that `who` touched them.
void check_range(const char *who, const void *address, size_t bytes);
// Ends the process unless the argument of this number is null or points into an allocation, or to its end.
void check_argument(size_t number, const volatile void *address);
// Device memory that an address is in or next to, in words; empty for other memory.
const char *describe(const void *address, char *text, size_t room);
size_t memory_total();
size_t memory_free();
void print_memory();

// Says what is wrong, in which kernel and thread, and ends the process.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
long setting(const char *variable, long otherwise);

}  // namespace emu
