// The CUDA driver as cudarc and candle call it. All is done when a call returns: streams and events are only names.
#include "machine.h"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <dlfcn.h>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

// Numbers of cuda.h.
enum Result : int {
    success = 0,
    invalid_value = 1,
    out_of_memory = 2,
    not_initialized = 3,
    invalid_device = 101,
    invalid_context = 201,
    not_found = 500,
};
using Address = unsigned long long;

struct Module {
    std::string text;
};
struct Event {
    std::chrono::steady_clock::time_point time;
};

bool initialized;
int primary;  // its address is the one context
thread_local void *context;

void *at(Address address) { return reinterpret_cast<void *>(address); }

// Kernels by name, and the module file that each is of.
using Kernels = std::map<std::string, std::pair<emu::Kernel *, std::string>>;

const Kernels &kernels() {
    static const Kernels &all = *[] {  // which is there as long as the process
        auto *made = new Kernels;
        Kernels &all = *made;
        const char *folder = getenv("EMU_MODULES");
        DIR *dir = folder ? opendir(folder) : nullptr;
        if (!dir) emu::fail("EMU_MODULES names no folder: use scripts/emulate-cuda.sh");
        std::vector<std::string> names;
        while (const dirent *entry = readdir(dir))
            if (std::string name = entry->d_name; name.size() > 3 && name.substr(name.size() - 3) == ".so")
                names.push_back(name);
        closedir(dir);
        for (const std::string &name : names) {
            void *library = dlopen((std::string(folder) + "/" + name).c_str(), RTLD_NOW | RTLD_LOCAL);
            if (!library) emu::fail("%s", dlerror());
            auto *kernel = static_cast<emu::Kernel *>(dlsym(library, "emu_kernels"));
            auto *shared = reinterpret_cast<void *(*)()>(dlsym(library, "emu_shared"));
            for (; kernel && kernel->name; kernel++) {
                // Candle's have much of it, and are trusted.
                if (name.rfind("candle-", 0)) kernel->shared = shared;
                if (!all.emplace(kernel->name, std::pair(kernel, name)).second)
                    emu::fail("two kernels are named %s", kernel->name);
            }
        }
        return made;
    }();
    return all;
}

// Whether a module's text has the kernel: PTX of the real compiler declares it, that of ours names the source.
bool declares(const Module &module, const std::string &kernel, const std::string &file) {
    size_t end = module.text.find(".cu, see tests/cuda");
    if (end == std::string::npos) return module.text.find(" " + kernel + "(") != std::string::npos;
    return file.find("-" + module.text.substr(3, end - 3) + ".so") != std::string::npos;
}

// What a device is asked: compute capability 9.0 and what an H100 says.
int attribute(int which) {
    switch (which) {
        case 1:
        case 2:
        case 3: return 1024;        // threads of a block, in x, in y
        case 4: return 64;          // in z
        case 5: return 0x7FFFFFFF;  // blocks of a grid in x
        case 6:
        case 7: return 65535;     // in y, in z
        case 8: return 48 << 10;  // shared memory of a block
        case 10: return 32;       // lanes of a warp
        case 12:
        case 82: return 65536;  // registers of a block, of a multiprocessor
        case 16: return 132;    // multiprocessors
        case 39: return 2048;   // threads of a multiprocessor
        case 75: return static_cast<int>(emu::setting("EMU_COMPUTE_CAP", 90) / 10);
        case 76: return static_cast<int>(emu::setting("EMU_COMPUTE_CAP", 90) % 10);
        case 81: return 228 << 10;  // shared memory of a multiprocessor
        case 97: return 227 << 10;  // shared memory of a block that asks for it
        case 115: return 1;         // memory pools
        default: emu::fail("device attribute %d isn't known", which);
    }
}

Result ready() { return !initialized ? not_initialized : !context ? invalid_context : success; }

Result allocate(Address *address, size_t bytes) {
    if (Result r = ready()) return r;
    void *memory = emu::allocate(bytes);
    *address = reinterpret_cast<Address>(memory);
    return memory ? success : out_of_memory;
}

Result copy(void *to, const void *from, size_t bytes, bool to_device, bool from_device, const char *who) {
    if (Result r = ready()) return r;
    if (to_device) emu::check_range(who, to, bytes);
    if (from_device) emu::check_range(who, from, bytes);
    if (bytes) memmove(to, from, bytes);
    return success;
}

Result fill(Address address, unsigned char value, size_t bytes) {
    if (Result r = ready()) return r;
    emu::check_range("memset", at(address), bytes);
    if (bytes) memset(at(address), value, bytes);
    return success;
}

struct AtExit {
    ~AtExit() {
        if (!initialized) return;
        emu::print_memory();
        if (!emu::setting("EMU_PROFILE", 0)) return;
        std::vector<const emu::Kernel *> used;
        for (const auto &[name, kernel] : kernels())
            if (kernel.first->launches) used.push_back(kernel.first);
        std::sort(used.begin(), used.end(), [](auto *a, auto *b) { return a->seconds > b->seconds; });
        for (const auto *kernel : used)
            fprintf(stderr, "%9ld launches %9.3f s  %s\n", kernel->launches, kernel->seconds, kernel->name);
    }
} at_exit;

}  // namespace

// Names of entries that cuda.h renames by macros are written as they are linked.
extern "C" {

Result cuInit(unsigned) { return initialized = true, success; }
Result cuDriverGetVersion(int *version) { return *version = 13000, success; }
Result cuDeviceGetCount(int *count) { return *count = 1, success; }
Result cuDeviceGet(int *device, int ordinal) { return *device = ordinal, ordinal == 0 ? success : invalid_device; }
Result cuDeviceGetAttribute(int *value, int which, int) { return *value = attribute(which), success; }
Result cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = emu::memory_total(), success; }
Result cuDeviceGetName(char *name, int room, int) { return snprintf(name, room, "emulated on the CPU"), success; }
Result cuDeviceGetUuid_v2(char *uuid, int) { return memset(uuid, 0, 16), success; }

Result cuDevicePrimaryCtxRetain(void **made, int) { return *made = &primary, success; }
Result cuDevicePrimaryCtxRelease_v2(int) { return success; }
Result cuCtxGetCurrent(void **current) { return *current = context, success; }
Result cuCtxSetCurrent(void *next) { return context = next, success; }
Result cuCtxSynchronize() { return ready(); }
Result cuCtxSetFlags(unsigned) { return ready(); }
Result cuMemGetInfo_v2(size_t *free, size_t *total) {
    *free = emu::memory_free();
    *total = emu::memory_total();
    return ready();
}

Result cuGetErrorName(int error, const char **name) {
    switch (error) {
        case success: *name = "CUDA_SUCCESS"; break;
        case invalid_value: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case out_of_memory: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case not_initialized: *name = "CUDA_ERROR_NOT_INITIALIZED"; break;
        case invalid_device: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
        case invalid_context: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
        case not_found: *name = "CUDA_ERROR_NOT_FOUND"; break;
        default: *name = "an error that isn't emulated";
    }
    return success;
}
Result cuGetErrorString(int error, const char **text) { return cuGetErrorName(error, text); }

Result cuStreamCreate(void **stream, unsigned) { return *stream = new char, ready(); }
Result cuStreamCreateWithPriority(void **stream, unsigned, int) { return *stream = new char, ready(); }
Result cuStreamDestroy_v2(void *stream) { return delete static_cast<char *>(stream), success; }
Result cuStreamSynchronize(void *) { return ready(); }
Result cuStreamWaitEvent(void *, void *, unsigned) { return ready(); }
Result cuStreamIsCapturing(void *, int *status) { return *status = 0, ready(); }

Result cuEventCreate(Event **event, unsigned) { return *event = new Event, ready(); }
Result cuEventDestroy_v2(Event *event) { return delete event, success; }
Result cuEventRecord(Event *event, void *) { return event->time = std::chrono::steady_clock::now(), ready(); }
Result cuEventQuery(Event *) { return ready(); }
Result cuEventSynchronize(Event *) { return ready(); }
Result cuEventElapsedTime_v2(float *milliseconds, const Event *start, const Event *end) {
    *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
    return ready();
}
Result cuEventElapsedTime(float *milliseconds, const Event *start, const Event *end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}

Result cuMemAlloc_v2(Address *address, size_t bytes) { return bytes ? allocate(address, bytes) : invalid_value; }
Result cuMemAllocAsync(Address *address, size_t bytes, void *) {
    return bytes ? allocate(address, bytes) : (*address = 0, ready());
}
Result cuMemFree_v2(Address address) {
    if (address) emu::release(at(address));
    return ready();
}
Result cuMemFreeAsync(Address address, void *) { return cuMemFree_v2(address); }
Result cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
    *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *memory ? ready() : out_of_memory;
}
Result cuMemFreeHost(void *memory) { return free(memory), success; }

Result cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) {
    return copy(at(to), from, bytes, true, false, "cuMemcpyHtoD");
}
Result cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) {
    return copy(to, at(from), bytes, false, true, "cuMemcpyDtoH");
}
Result cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    return copy(at(to), at(from), bytes, true, true, "cuMemcpyDtoD");
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *) {
    return cuMemcpyHtoD_v2(to, from, bytes);
}
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *) { return cuMemcpyDtoH_v2(to, from, bytes); }
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *) { return cuMemcpyDtoD_v2(to, from, bytes); }
Result cuMemsetD8_v2(Address address, unsigned char value, size_t bytes) { return fill(address, value, bytes); }
Result cuMemsetD8Async(Address address, unsigned char value, size_t bytes, void *) {
    return fill(address, value, bytes);
}

Result cuModuleLoadData(Module **module, const char *image) { return *module = new Module{image}, ready(); }
Result cuModuleUnload(Module *module) { return delete module, success; }
Result cuModuleGetFunction(emu::Kernel **function, const Module *module, const char *name) {
    auto found = kernels().find(name);
    if (found != kernels().end() && declares(*module, name, found->second.second))
        return *function = found->second.first, ready();
    fprintf(stderr, "emulated CUDA: no kernel %s in the module\n", name);
    return not_found;
}
Result cuFuncSetAttribute(emu::Kernel *kernel, int which, int value) {
    if (which != 8) return success;  // how much dynamic shared memory a launch may ask for
    if (value < 0 || value > attribute(97)) return invalid_value;
    kernel->dynamic_shared = value;
    return ready();
}
Result cuFuncGetAttribute(int *value, int which, const emu::Kernel *kernel) {
    *value = which == 0 ? 1024 : which == 8 ? static_cast<int>(kernel->dynamic_shared) : 0;
    return ready();
}
Result cuFuncSetCacheConfig(emu::Kernel *, int) { return success; }

Result cuLaunchKernel(emu::Kernel *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *, void **arguments, void **) {
    if (Result r = ready()) return r;
    bool fits = gx && gy && gz && bx && by && bz && gx <= 0x7FFFFFFF && gy <= 65535 && gz <= 65535 && bx <= 1024 &&
                by <= 1024 && bz <= 64 && size_t{bx} * by * bz <= 1024 && shared <= kernel->dynamic_shared;
    if (!fits) {
        fprintf(stderr,
                "emulated CUDA: kernel %s: no grid of (%u, %u, %u) blocks of (%u, %u, %u) threads with %u bytes\n",
                kernel->name, gx, gy, gz, bx, by, bz, shared);
        return invalid_value;
    }
    kernel->check(arguments);
    emu::launch({kernel, arguments, {gx, gy, gz}, {bx, by, bz}, shared});
    return success;
}

}  // extern "C"
