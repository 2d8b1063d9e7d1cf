// The log from C++: to its function, replaced and taken back while engines run, what it throws, and the end of a process that leaves it
// set. Run: log MODEL DATA. Prints "ok"; tests not what is logged.
#include <apa.hpp>

#include <atomic>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <thread>

namespace {

void expect(bool met, const char *what) {
    if (met) return;
    std::cerr << what << '\n';
    std::exit(1);
}

apa::options small(const char *model, const std::string &data) {
    return apa::options{}
        .set("model", model)
        .set("data", data)
        .set("serve.context", "512")
        .set("serve.threads", "1")
        .set("train.auto", "false");
}

bool refused(std::int32_t level) {
    try {
        apa::set_log(level, [](std::int32_t, std::string_view) {});
        return false;
    } catch (const apa::error &e) {
        return e.status() == APA_ERR_ARG;
    }
}

/** Logs at the end of the process, after everything that was made later is gone. */
struct last {
    std::optional<apa::engine> engine;
} kept;

} // namespace

int main(int count, char **arguments) {
    expect(count == 3, "log MODEL DATA");
    const std::string data = arguments[2];
    std::atomic<int> lines{0}, nested{0};

    expect(refused(0) && refused(6), "a level that is none was taken");
    apa::set_log(4, [&](std::int32_t level, std::string_view json) {
        expect(level >= 1 && level <= 4, "a line of another level");
        expect(json.front() == '{' && json.find("\"message\"") != json.npos, "a line that is no JSON");
        nested += refused(3);
        ++lines;
        throw std::runtime_error("the application's own");
    });
    { apa::engine engine{small(arguments[1], data + "/a")}; }
    expect(lines > 0 && nested == lines, "nothing was logged, or a function set another from inside");

    apa::clear_log();
    const int before = lines;
    { apa::engine engine{small(arguments[1], data + "/b")}; }
    expect(lines == before, "logged after it was taken back");

    std::atomic<bool> stop{false};
    std::thread changing([&] {
        for (int i = 0; !stop; ++i) {
            // Freed with the function that holds it.
            const auto own = std::make_shared<int>(i);
            if (i % 3 == 0) apa::clear_log();
            else apa::set_log(5, [own](std::int32_t, std::string_view) { ++*own; });
        }
    });
    for (int i = 0; i < 3; ++i) {
        apa::engine engine{small(arguments[1], data + "/c")};
        auto answer = engine.generate(R"({"prompt": "the", "max_tokens": 8})");
        answer.next();
    }
    stop = true;
    changing.join();

    apa::set_log(5, [](std::int32_t, std::string_view) {});
    kept.engine.emplace(small(arguments[1], data + "/d"));
    std::cout << "ok" << std::endl;
}
