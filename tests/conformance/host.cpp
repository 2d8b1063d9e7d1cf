// An application with habits of its own around the library: host MODEL DATA. Handlers for signals and a timer that interrupts every
// thread a thousand times a second, its own operator new, many threads; then it looks whether all of that is as it was. Prints what
// isn't, and "ok" at the end.
#include <apa.hpp>

#include <cfenv>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <exception>
#include <new>
#include <sched.h>
#include <string>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <thread>
#include <unistd.h>
#include <vector>

// Memory from here has a mark in front; what is given back without it was not from here.
namespace {
constexpr unsigned long long mark = 0x6c69626170613a29;
std::size_t allocated;

void *marked(std::size_t size)
{
    auto *at = static_cast<unsigned long long *>(std::malloc(size + 16));
    if (!at)
        throw std::bad_alloc();
    *at = mark;
    __atomic_add_fetch(&allocated, 1, __ATOMIC_RELAXED);
    return at + 2;
}

void unmarked(void *pointer) noexcept
{
    if (!pointer)
        return;
    auto *at = static_cast<unsigned long long *>(pointer) - 2;
    if (*at != mark)
        abort();
    *at = 0;
    std::free(at);
}
} // namespace

void *operator new(std::size_t size) { return marked(size); }
void *operator new[](std::size_t size) { return marked(size); }
void operator delete(void *pointer) noexcept { unmarked(pointer); }
void operator delete[](void *pointer) noexcept { unmarked(pointer); }
void operator delete(void *pointer, std::size_t) noexcept { unmarked(pointer); }
void operator delete[](void *pointer, std::size_t) noexcept { unmarked(pointer); }

namespace {
volatile std::sig_atomic_t ticks;
void on_signal(int number) { ticks = ticks + (number == SIGALRM); }
[[noreturn]] void on_terminate() { _exit(7); }

int entries(const char *folder)
{
    int count = 0;
    DIR *dir = opendir(folder);
    while (dir && readdir(dir))
        count++;
    if (dir)
        closedir(dir);
    return count;
}

// All of the process that a library could change.
struct state {
    struct sigaction actions[65];
    sigset_t mask;
    std::terminate_handler terminate;
    std::new_handler new_handler;
    std::string locale, folder, environment;
    mode_t umask;
    int priority, rounding, files;
    cpu_set_t processors;
    rlimit files_limit;

    state()
    {
        std::memset(static_cast<void *>(actions), 0, sizeof actions);
        for (int i = 1; i < 65; i++)
            sigaction(i, nullptr, &actions[i]);
        pthread_sigmask(SIG_SETMASK, nullptr, &mask);
        terminate = std::get_terminate();
        new_handler = std::get_new_handler();
        locale = std::setlocale(LC_ALL, nullptr);
        char path[4096];
        folder = getcwd(path, sizeof path);
        for (char **entry = environ; *entry; entry++)
            environment += std::string(*entry) + '\n';
        umask = ::umask(0);
        ::umask(umask);
        priority = getpriority(PRIO_PROCESS, 0);
        rounding = fegetround();
        files = entries("/proc/self/fd");
        CPU_ZERO(&processors);
        sched_getaffinity(0, sizeof processors, &processors);
        getrlimit(RLIMIT_NOFILE, &files_limit);
    }
};

int strange;

void same(const char *what, bool is)
{
    if (is)
        return;
    std::printf("changed: %s\n", what);
    strange++;
}

void compare(const state &a, const state &b, const char *when)
{
    std::printf("%s\n", when);
    for (int i = 1; i < 65; i++)
        same(("the handler of signal " + std::to_string(i)).c_str(),
             a.actions[i].sa_handler == b.actions[i].sa_handler && a.actions[i].sa_flags == b.actions[i].sa_flags);
    for (int i = 1; i < 65; i++)
        same("the mask of signals", sigismember(&a.mask, i) == sigismember(&b.mask, i));
    same("the terminate handler", a.terminate == b.terminate);
    same("the new handler", a.new_handler == b.new_handler);
    same("the locale", a.locale == b.locale);
    same("the working folder", a.folder == b.folder);
    same("the environment", a.environment == b.environment);
    same("the umask", a.umask == b.umask);
    same("the priority", a.priority == b.priority);
    same("the rounding of floats", a.rounding == b.rounding);
    same("the processors", CPU_EQUAL(&a.processors, &b.processors));
    same("the limit of open files", a.files_limit.rlim_cur == b.files_limit.rlim_cur);
}

void loop(const char *model, const char *data)
{
    apa::options options;
    options.set("model", model).set("data", data).set("serve.slots", "4").set("serve.context", "1024");
    options.set("serve.queue", "64").set("train.auto", "false").set("train.threads", "2").set("serve.threads", "2");
    apa::engine engine{options};
    std::vector<std::thread> threads;
    for (int i = 0; i < 64; i++)
        threads.emplace_back([&engine, i] {
            auto answer = engine.generate("{\"prompt\": \"the\", \"max_tokens\": 8, \"seed\": " + std::to_string(i) + "}");
            std::string text;
            for (const std::string &piece : answer)
                text += piece;
            engine.reward(answer.id(), i % 2 ? 1.0 : -1.0);
        });
    for (std::thread &thread : threads)
        thread.join();
    engine.train_step();
    try {
        engine.generate("{\"prompt\": \"\"}");
        same("that an empty prompt is an error", false);
    } catch (const apa::error &) {
    }
}
} // namespace

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    // The library was loaded before this line: its own start may not have touched anything either.
    same("the terminate handler, by loading", std::get_terminate() == __gnu_cxx::__verbose_terminate_handler);
    for (int i = 1; i < 32; i++) {
        struct sigaction action;
        std::memset(static_cast<void *>(&action), 0, sizeof action);
        action.sa_handler = on_signal; // Without SA_RESTART: calls of the system are interrupted.
        if (i != SIGKILL && i != SIGSTOP && i != SIGSEGV && i != SIGABRT)
            sigaction(i, &action, nullptr);
    }
    std::set_terminate(on_terminate);
    const state before;
    const itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &often, nullptr);
    loop(argv[1], argv[2]);
    const state after;
    setitimer(ITIMER_REAL, &never, nullptr);
    compare(before, after, "after the first engine");
    same("that the timer ran", ticks > 10);
    same("that operator new was the application's", allocated > 1000);
    loop(argv[1], argv[2]);
    const state again;
    compare(after, again, "after the second");
    same("the number of open files", after.files == again.files);
    if (!strange)
        std::printf("ok\n");
    return strange ? 1 : 0;
}
