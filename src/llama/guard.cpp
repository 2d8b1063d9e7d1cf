// The one place where C++ exceptions of llama.cpp end: nothing else may stand between it and Rust.
#include <cstdio>
#include <exception>
#include <new>

// Runs body(arg). 0: it returned; 1: it threw, and `message` says what; 2: memory ran out.
extern "C" int apa_cpp_guard(void (*body)(void *), void * arg, char * message, size_t size) noexcept {
    try {
        body(arg);
        return 0;
    } catch (const std::bad_alloc &) {
        return 2;
    } catch (const std::exception & e) {
        std::snprintf(message, size, "%s", e.what());
        return 1;
    } catch (...) {
        std::snprintf(message, size, "unknown C++ exception");
        return 1;
    }
}
