// Runs kernels: threads of a block are fibers of one CPU thread, which change at barriers and operations of their warp.
#include "machine.h"
#include <algorithm>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <link.h>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <vector>

#ifndef __x86_64__
#error "fibers are switched by instructions of x86-64"
#endif
asm(R"(
.text
.type emu_switch, @function
emu_switch:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
.size emu_switch, .-emu_switch
)");
extern "C" void emu_switch(void **from, void *to) __attribute__((visibility("hidden")));

namespace emu {

__thread const Position *position = nullptr;

bool reversed() {
    static const bool reverse = [] {
        const char *order = getenv("EMU_ORDER");
        return order && !strcmp(order, "reverse");
    }();
    return reverse;
}

namespace {

constexpr size_t stack_bytes = 128 << 10, page = 4096, most_shared = 227 << 10;

enum class State { fresh, ready, barrier, collective, done };

struct Fiber {
    char *stack;
    void *sp;
};

struct Thread {
    Position position;
    State state;
    Fiber *fiber;
    unsigned mask;
    uint64_t value;
    const Collective *told;
};

// One CPU thread that runs blocks, one at a time.
class Worker {
  public:
    void run(const Launch &launch, Dim block);
    void wait(State state);
    Thread *current = nullptr;
    const Launch *job = nullptr;

  private:
    static void enter();
    void take(unsigned thread);
    bool take_fresh();
    void run_warp(unsigned warp);
    void pass();
    void finish_collectives(unsigned warp);
    void stuck(unsigned warp, const char *what);
    char *dynamic_shared(unsigned bytes);
    void forget_shared(void *(*shared)());
    Fiber *fiber();

    std::vector<Thread> threads;
    std::vector<Fiber *> idle;
    unsigned first = 0, last = 0, taken = 0;  // threads of the warp that runs; how many of them the pass has taken
    void *sp = nullptr;
    Collective ring[64];
    unsigned next_in_ring = 0;
    char *shared_memory = nullptr;
    std::map<void *(*)(), std::pair<void *, size_t>> static_shared;  // by module
};

thread_local Worker *worker = nullptr;

// Workers of threads that have ended, with their stacks, for those that come.
std::mutex mutex;
std::vector<Worker *> spare;

struct Employed {
    Employed() {
        std::lock_guard lock(mutex);
        worker = spare.empty() ? new Worker : spare.back();
        if (!spare.empty()) spare.pop_back();
        // Where a stack has run over, the handler of faults needs another.
        constexpr size_t room = 64 << 10;
        stack_t alternate{};
        alternate.ss_sp = malloc(room);
        alternate.ss_size = room;
        sigaltstack(&alternate, nullptr);
    }
    ~Employed() {
        std::lock_guard lock(mutex);
        spare.push_back(worker);
        worker = nullptr;
    }
};

Worker &this_worker() {
    if (!worker) thread_local Employed employed;
    return *worker;
}

void Worker::enter() {
    for (;;) {
        Worker &w = *worker;
        do {
            w.job->kernel->call(w.job->arguments);
            w.current->state = State::done;
        } while (w.take_fresh());
        Fiber *self = w.current->fiber;
        w.idle.push_back(self);
        emu_switch(&self->sp, w.sp);
    }
}

Fiber *Worker::fiber() {
    if (!idle.empty()) {
        Fiber *fiber = idle.back();
        idle.pop_back();
        return fiber;
    }
    void *memory =
        mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE)) fail("no memory for the stack of a thread");
    auto *fiber = new Fiber{static_cast<char *>(memory), nullptr};
    // What emu_switch takes from the stack: six registers, where to go on, and no caller.
    auto **top = reinterpret_cast<void **>(fiber->stack + stack_bytes) - 8;
    memset(top, 0, 8 * sizeof *top);
    top[6] = reinterpret_cast<void *>(&Worker::enter);
    fiber->sp = top;
    return fiber;
}

void Worker::take(unsigned thread) {
    current = &threads[thread];
    position = &current->position;
}

// The thread of this number in the order of the pass.
unsigned ordered(unsigned first, unsigned last, unsigned i) { return reversed() ? last - 1 - i : first + i; }

// A fiber that has run a thread to its end goes on with the next one, if that is fresh.
bool Worker::take_fresh() {
    if (taken >= last - first) return false;
    unsigned thread = ordered(first, last, taken);
    if (threads[thread].state != State::fresh) return false;
    taken++;
    Fiber *self = current->fiber;
    take(thread);
    current->fiber = self;
    return true;
}

// Runs every thread of the warp that can run until it waits or ends.
void Worker::pass() {
    for (taken = 0; taken < last - first;) {
        unsigned thread = ordered(first, last, taken++);
        State state = threads[thread].state;
        if (state != State::fresh && state != State::ready) continue;
        take(thread);
        if (state == State::fresh) current->fiber = fiber();
        emu_switch(&sp, current->fiber->sp);
    }
    position = nullptr;
}

void Worker::stuck(unsigned warp, const char *what) {
    unsigned waiting[5] = {};
    for (unsigned t = first; t < last; t++) waiting[static_cast<int>(threads[t].state)]++;
    fail("%s: of warp %u %u threads wait at a barrier, %u in an operation of the warp, %u have ended", what, warp,
         waiting[static_cast<int>(State::barrier)], waiting[static_cast<int>(State::collective)],
         waiting[static_cast<int>(State::done)]);
}

// Lets those lanes go on whose partners have all come.
void Worker::finish_collectives(unsigned warp) {
    for (unsigned t = first; t < last; t++) {
        if (threads[t].state != State::collective) continue;
        unsigned mask = threads[t].mask, lanes = 0;
        bool all = true;
        for (unsigned o = first; o < last; o++) {
            if (!(mask >> (o - first) & 1) || threads[o].state == State::done) continue;
            all = all && threads[o].state == State::collective && threads[o].mask == mask;
            lanes |= 1u << (o - first);
        }
        if (!(lanes >> (t - first) & 1)) stuck(warp, "a lane isn't in the mask that it names");
        if (!all) continue;
        Collective &told = ring[next_in_ring++ % 64];
        told.lanes = lanes;
        for (unsigned o = first; o < first + 32; o++) {
            bool takes_part = lanes >> (o - first) & 1;
            told.values[o - first] = takes_part ? threads[o].value : ~uint64_t{0};
            if (!takes_part) continue;
            threads[o].told = &told;
            threads[o].state = State::ready;
        }
        if (lanes == ~0u) return;
    }
}

void Worker::run_warp(unsigned warp) {
    first = warp * 32;
    last = std::min<unsigned>(first + 32, threads.size());
    auto has = [&](State state) {
        return std::any_of(threads.begin() + first, threads.begin() + last,
                           [=](const Thread &t) { return t.state == state; });
    };
    do {
        pass();
        if (!has(State::collective)) return;
        finish_collectives(warp);
    } while (has(State::ready));
    stuck(warp, "lanes wait for others that don't come");
}

void Worker::run(const Launch &launch, Dim block) {
    job = &launch;
    Dim size = launch.block;
    threads.resize(size.x * size.y * size.z);
    char *dynamic = dynamic_shared(launch.dynamic_shared);
    if (launch.kernel->shared) forget_shared(launch.kernel->shared);
    for (unsigned t = 0; t < threads.size(); t++) {
        Dim index{t % size.x, t / size.x % size.y, t / (size.x * size.y)};
        threads[t] = {{index, block, size, launch.grid, dynamic}, State::fresh, nullptr, 0, 0, nullptr};
    }
    unsigned warps = (threads.size() + 31) / 32;
    for (;;) {
        for (unsigned w = 0; w < warps; w++) run_warp(reversed() ? warps - 1 - w : w);
        size_t waiting =
            std::count_if(threads.begin(), threads.end(), [](const Thread &t) { return t.state == State::barrier; });
        if (!waiting) break;
        if (waiting < threads.size())
            fail("%zu of %zu threads wait at a barrier, and the others have ended", waiting, threads.size());
        for (Thread &t : threads) t.state = State::ready;
    }
    current = nullptr;
    job = nullptr;
}

void Worker::wait(State state) {
    Fiber *self = current->fiber;
    current->state = state;
    emu_switch(&self->sp, sp);
}

// Static shared memory is what a module has of its own in each CPU thread.
void Worker::forget_shared(void *(*shared)()) {
    auto [found, missing] = static_shared.try_emplace(shared, shared(), 0);
    if (missing) {
        auto find = [](dl_phdr_info *module, size_t, void *given) {
            auto *memory = static_cast<std::pair<void *, size_t> *>(given);
            for (int i = 0; i < module->dlpi_phnum; i++) {
                const auto &part = module->dlpi_phdr[i];
                auto from = static_cast<char *>(module->dlpi_tls_data), to = from + part.p_memsz;
                if (part.p_type != PT_TLS || memory->first < from || memory->first >= to) continue;
                *memory = {from, part.p_memsz};
                return 1;
            }
            return 0;
        };
        dl_iterate_phdr(find, &found->second);
    }
    memset(found->second.first, 0xFF, found->second.second);
}

// Dynamic shared memory ends at a page that can't be touched.
char *Worker::dynamic_shared(unsigned bytes) {
    constexpr size_t room = (most_shared / page + 1) * page;
    if (!shared_memory) {
        void *memory = mmap(nullptr, room + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for shared memory");
        shared_memory = static_cast<char *>(memory) + page;
        mprotect(memory, page, PROT_NONE);
        mprotect(shared_memory + room, page, PROT_NONE);
    }
    memset(shared_memory, 0xFF, bytes ? room : 0);
    return shared_memory + room - (bytes + 15) / 16 * 16;
}

struct sigaction before_ours;

void on_fault(int number, siginfo_t *info, void *) {
    if (position && info->si_code == SI_KERNEL) fail("touches a vector at an address that isn't aligned");
    if (position) {
        char where[200];
        describe(info->si_addr, where, sizeof where);
        fail("touches %p%s%s", info->si_addr, *where ? ", " : "", where);
    }
    sigaction(number, &before_ours, nullptr);
}

}  // namespace

unsigned lane() {
    const Position &p = *position;
    return (p.thread.x + p.block_size.x * (p.thread.y + p.block_size.y * p.thread.z)) % 32;
}

void barrier() { worker->wait(State::barrier); }

const Collective &collective(unsigned mask, uint64_t value) {
    worker->current->mask = mask;
    worker->current->value = value;
    worker->wait(State::collective);
    return *worker->current->told;
}

void run_block(const Launch &launch, Dim block) {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action{};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before_ours);
    });
    this_worker().run(launch, block);
}

long setting(const char *variable, long otherwise) {
    const char *text = getenv(variable);
    return text && *text ? atol(text) : otherwise;
}

void fail(const char *format, ...) {
    fputs("emulated CUDA: ", stderr);
    if (const Worker *w = worker; w && w->job) {
        fprintf(stderr, "kernel %s: ", w->job->kernel->name);
        if (const Position *p = position)
            fprintf(stderr, "block (%u, %u, %u), thread (%u, %u, %u): ", p->block.x, p->block.y, p->block.z,
                    p->thread.x, p->thread.y, p->thread.z);
    }
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    abort();
}

}  // namespace emu

// What -fsanitize=bounds,alignment calls in a kernel: for an index beyond an array, shared or local, and for an address
// where no value of the type may lie.
namespace {
struct Source {
    const char *file;
    uint32_t line, column;
};
struct Access {
    Source source;
    const char *type;  // after four bytes, its name
    unsigned char alignment, kind;
};
}  // namespace
extern "C" void __ubsan_handle_out_of_bounds_abort(const Source *source, uintptr_t index) {
    emu::fail("%s:%u: index %ld is beyond its array", source->file, source->line, static_cast<long>(index));
}
extern "C" void __ubsan_handle_type_mismatch_v1_abort(const Access *access, uintptr_t address) {
    const Source &source = access->source;
    emu::fail("%s:%u: %#lx isn't aligned to %d bytes, as %s has to be", source.file, source.line, address,
              1 << access->alignment, access->type + 4);
}
