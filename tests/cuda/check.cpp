// What the emulated device is trusted for: kernels that compute, and faults that it must tell. Needs module check.so.
#include "numbers.h"
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

using Address = unsigned long long;
extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void **, int);
int cuCtxSetCurrent(void *);
int cuMemAlloc_v2(Address *, size_t);
int cuMemFree_v2(Address);
int cuMemGetInfo_v2(size_t *, size_t *);
int cuMemcpyHtoD_v2(Address, const void *, size_t);
int cuMemcpyDtoH_v2(void *, Address, size_t);
int cuModuleLoadData(void **, const void *);
int cuModuleGetFunction(void **, void *, const char *);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                   void **);
void cuMemAllocManaged();
int cublasCreate_v2(void **);
int cublasGemmEx(void *, int, int, int, int, int, const void *, const void *, int, int, const void *, int, int,
                 const void *, void *, int, int, int, int);
}

namespace {

void require(bool that, const std::string &what) {
    if (that) return;
    printf("FAILED: %s\n", what.c_str());
    exit(1);
}
void done(int result, const char *what) {
    require(result == 0, std::string(what) + " gives " + std::to_string(result));
}
#define DONE(call) done(call, #call)

void *module;

template <class T>
Address device(const std::vector<T> &values) {
    Address address;
    DONE(cuMemAlloc_v2(&address, values.size() * sizeof(T)));
    DONE(cuMemcpyHtoD_v2(address, values.data(), values.size() * sizeof(T)));
    return address;
}
std::vector<float> host(Address address, size_t count) {
    std::vector<float> values(count);
    DONE(cuMemcpyDtoH_v2(values.data(), address, count * sizeof(float)));
    return values;
}
template <class... A>
int launch(const char *name, unsigned blocks, unsigned threads, unsigned shared, A... arguments) {
    void *function, *pointers[] = {&arguments...};
    DONE(cuModuleGetFunction(&function, module, name));
    return cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared, nullptr, pointers, nullptr);
}

// Numbers between -1 and 1 that bf16 holds.
std::vector<float> numbers(size_t count, unsigned seed) {
    std::vector<float> values(count);
    for (float &x : values)
        x = static_cast<float>(static_cast<int>((seed = seed * 1664525 + 1013904223) >> 24) - 128) / 128;
    return values;
}
void near(const std::vector<float> &found, const std::vector<float> &expected, const char *what) {
    for (size_t i = 0; i < expected.size(); i++)
        require(std::fabs(found[i] - expected[i]) < 1e-3f, std::string(what) + ": " + std::to_string(found[i]) +
                                                               " at " + std::to_string(i) + ", expected " +
                                                               std::to_string(expected[i]));
}

// The process must end and say this.
void tells(const std::string &message, const std::function<void()> &fault) {
    int ends[2];
    require(pipe(ends) == 0, "a pipe");
    pid_t child = fork();
    if (!child) {
        dup2(ends[1], 2);
        fault();
        _exit(0);
    }
    close(ends[1]);
    std::string text;
    char buffer[512];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    require(WIFSIGNALED(status) && text.find(message) != std::string::npos,
            "no \"" + message + "\" in \"" + text + "\"");
}

void computes() {
    const int rows = 300, columns = 777;
    std::vector<float> in = numbers(rows * columns, 1), expected(rows), all{0};
    for (int i = 0; i < rows * columns; i++) expected[i / columns] += in[i], all[0] += in[i];
    Address from = device(in), to = device(std::vector<float>(rows)), total = device(std::vector<float>{0});
    DONE(launch("sums", rows, 256, 0, from, to, total, columns));
    near(host(to, rows), expected, "sums of rows");
    require(std::fabs(host(total, 1)[0] - all[0]) < 0.5f, "the sum of all");

    std::vector<float> line = numbers(512, 2), turned(512);
    for (int i = 0; i < 512; i++) turned[i / 256 * 256 + 255 - i % 256] = line[i];
    to = device(line);
    DONE(launch("reversed", 2, 64, 64 * 16, device(line), to));
    near(host(to, 512), turned, "a reversed row");

    for (int k : {16, 64}) {
        std::vector<float> a = numbers(16 * k, 3), b = numbers(16 * k, 4), c(256), one{1}, none{0};
        for (int i = 0; i < 256 * k; i++) c[i / k] += a[i / k / 16 * k + i % k] * b[i / k % 16 * k + i % k];
        Address left = device(std::vector<__nv_bfloat16>(a.begin(), a.end())),
                right = device(std::vector<__nv_bfloat16>(b.begin(), b.end()));
        to = device(std::vector<float>(256));
        DONE(launch("tiles", 1, 32, 0, left, right, to, k));
        near(host(to, 256), c, "a product of tiles");
        // The same by cuBLAS, whose matrices lie column by column: c^T = b a^T.
        void *handle, *at[] = {reinterpret_cast<void *>(right), reinterpret_cast<void *>(left)};
        DONE(cublasCreate_v2(&handle));
        Address out;
        DONE(cuMemAlloc_v2(&out, 256 * sizeof(float)));
        DONE(cublasGemmEx(handle, 1, 0, 16, 16, k, one.data(), at[0], 14, k, at[1], 14, k, none.data(),
                          reinterpret_cast<void *>(out), 0, 16, 68, -1));
        near(host(out, 256), c, "a product of cuBLAS");
    }
}

void tells_faults() {
    Address memory = device(std::vector<float>(64));
    Address halves = device(std::vector<__nv_bfloat16>(512));
    tells("kernel beyond_memory: block (0, 0, 0), thread (0, 0, 0): touches",
          [=] { launch("beyond_memory", 1, 1, 0, memory, 64); });
    tells("byte 256 of an allocation of 256", [=] { launch("beyond_memory", 1, 1, 0, memory, 64); });
    tells("freed or never allocated", [=] {
        Address freed = device(std::vector<float>(64)), next = device(std::vector<float>(64));
        cuMemFree_v2(freed);
        launch("beyond_memory", 1, 1, 0, next, static_cast<int>(freed - next) / 4);
    });
    tells("index 32 is beyond its array", [=] { launch("beyond_array", 1, 32, 0, memory, 1); });
    tells("kernel beyond_shared", [=] { launch("beyond_shared", 1, 1, 128, memory, 32); });
    tells("32 of 64 threads wait at a barrier", [=] { launch("half_a_barrier", 1, 64, 0, memory); });
    tells("of warp 0 16 threads wait at a barrier, 16 in an operation of the warp",
          [=] { launch("half_a_warp", 1, 32, 0, memory); });
    tells("isn't aligned to 16 bytes", [=] { launch("misaligned", 1, 1, 0, memory, 2); });
    tells("isn't aligned to 32 bytes", [=] { launch("tile_awry", 1, 32, 0, halves); });
    tells("argument 0, ", [=] { cuMemFree_v2(memory), launch("beyond_memory", 1, 1, 0, memory, 0); });
    tells("argument 0, ", [=] { launch("beyond_memory", 1, 1, 0, &memory, 0); });
    tells("which is no allocation", [=] { cuMemFree_v2(memory + 4); });
    tells("cuMemcpyDtoH touches 260 bytes", [=] { host(memory, 65); });
    tells("cuMemAllocManaged is not implemented", [] { cuMemAllocManaged(); });
    require(launch("beyond_shared", 1, 1, 49 << 10, memory, 0) == 1,
            "dynamic shared memory beyond 48 KB that wasn't asked for");
    require(launch("beyond_memory", 0, 1, 0, memory, 0) == 1, "a grid without blocks");
    void *function, *other;
    DONE(cuModuleLoadData(&other, "// other.cu, see tests/cuda"));
    require(cuModuleGetFunction(&function, other, "sums") == 500, "a kernel of another module");

    DONE(launch("misaligned", 1, 1, 0, memory, 4));
    for (int again = 0; again < 2; again++) {
        DONE(launch("unwritten_shared", 1, 64, 0, memory));
        std::vector<float> values = host(memory, 64);
        require(values[31] == 1 && std::isnan(values[32]), "shared memory that wasn't written");
    }

    // A barrier that is missing shows by the order of threads.
    std::vector<float> line = numbers(64, 5);
    Address in = device(line), out = device(std::vector<float>(64));
    DONE(launch("raced", 1, 64, 0, in, out));
    std::vector<float> turned(line.rbegin(), line.rend()), found = host(out, 64);
    bool alike = true;
    for (int i = 0; i < 64; i++) alike = alike && found[i] == turned[i];
    require(!alike, "a race that doesn't show");

    size_t before, after, total;
    cuMemGetInfo_v2(&before, &total);
    require(total == 16 << 20, "the memory that EMU_MEMORY_MB says");
    Address most, more;
    DONE(cuMemAlloc_v2(&most, before - 512));
    require(cuMemAlloc_v2(&more, 4096) == 2, "memory beyond what there is");
    float x;
    DONE(cuMemcpyDtoH_v2(&x, most, sizeof x));
    require(std::isnan(x), "unwritten memory that is a number");
    DONE(cuMemFree_v2(most));
    cuMemGetInfo_v2(&after, &total);
    require(before == after, "memory that was freed");
}

}  // namespace

int main() {
    setenv("EMU_MEMORY_MB", "16", 1);
    DONE(cuInit(0));
    void *context;
    DONE(cuDevicePrimaryCtxRetain(&context, 0));
    DONE(cuCtxSetCurrent(context));
    DONE(cuModuleLoadData(&module, "// check.cu, see tests/cuda"));
    tells_faults();
    computes();
    puts("the emulated device computes, and tells faults");
}
