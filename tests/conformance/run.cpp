// Runs cases.json through the C++ layer: run CASES MODEL DATA. Prints what run.c prints.

#include <apa.hpp>

#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <thread>
#include <vector>

#include "json.h"

namespace {

std::map<std::string, std::unique_ptr<apa::engine>> engines;
std::map<std::string, std::unique_ptr<apa::generation>> generations;
std::string model, data;

struct outcome {
    std::string value;
    apa_status status = APA_OK;
};

std::string name_of(apa_status status)
{
    static const char *const positive[] = {"OK", "DONE", "TIMEOUT", "CANCELLED"};
    static const char *const negative[] = {"",   "ARG",      "CLOSED",      "BUSY",  "MODEL", "TRAIN",
                                           "IO", "CALLBACK", "UNSUPPORTED", "NOMEM", "PANIC"};
    return status >= 0 ? positive[status] : negative[-status];
}

std::string hex(const std::string &text)
{
    static const char digits[] = "0123456789abcdef";
    std::string out;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        out += digits[byte >> 4];
        out += digits[byte & 15];
    }
    return out;
}

std::string string(const char *value)
{
    std::size_t length = 0;
    char *raw = json_string(value, &length);
    std::string text(raw, length);
    std::free(raw);
    return text;
}

std::string raw(const char *value) { return std::string(value, json_end(value)); }

std::string member(const char *object, const char *key)
{
    const char *value = json_member(object, key);
    return value && *value == '"' ? string(value) : value ? raw(value) : "";
}

std::string repeated(const char *pair)
{
    const std::string piece = string(json_first(pair));
    std::string all;
    for (long times = std::atol(json_next(json_first(pair))); times > 0; times--)
        all += piece;
    return all;
}

std::string text_of(const char *step)
{
    if (const char *pair = json_member(step, "text_repeat")) return repeated(pair);
    const std::string bytes = member(step, "hex");
    if (bytes.empty()) return member(step, "text");
    std::string text;
    for (std::size_t i = 0; i < bytes.size(); i += 2)
        text += static_cast<char>(std::stoi(bytes.substr(i, 2), nullptr, 16));
    return text;
}

std::string request_of(const char *step)
{
    std::string request = raw(json_member(step, "request"));
    if (const char *pair = json_member(step, "prompt_repeat"))
        request = "{\"prompt\":\"" + repeated(pair) + "\"," + request.substr(1);
    return request;
}

apa::engine &engine(const char *step) { return *engines.at(member(step, "engine")); }
apa::generation &generation(const char *step) { return *generations.at(member(step, "gen")); }

void open(const char *step)
{
    apa::options options;
    options.set("data", data + "/" + member(step, "data"));
    options.set("model", json_member(step, "model") ? data + "/missing.gguf" : model);
    options.set_json("", R"({"serve":{"context":4096,"threads":1,"speculate":false},"train":{"auto":false,"threads":1}})");
    if (const char *setting = json_member(step, "setting"))
        options.set_json(string(json_first(setting)), raw(json_next(json_first(setting))));
    engines[member(step, "engine")] = std::make_unique<apa::engine>(options);
}

outcome pull(const char *step)
{
    outcome o;
    std::string piece, text;
    while ((o.status = generation(step).wait(std::nullopt, piece)) == APA_OK)
        text += piece;
    if (!json_member(step, "quiet")) o.value = hex(text);
    return o;
}

outcome many(const char *step)
{
    const std::string request = request_of(step);
    std::vector<std::thread> threads;
    std::vector<char> done(static_cast<std::size_t>(std::stol(member(step, "threads"))));
    for (char &mine : done)
        threads.emplace_back([&] {
            auto answer = engine(step).generate(request);
            for (const std::string &text : answer)
                (void)text;
            mine = 1;
        });
    long count = 0;
    for (std::size_t i = 0; i < done.size(); i++) {
        threads[i].join();
        count += done[i];
    }
    return {std::to_string(count)};
}

outcome run(const char *step)
{
    const std::string op = member(step, "op");
    if (op == "open") return open(step), outcome{};
    if (op == "close") {
        // Freed behind its owner's back, who frees it again: that is harmless.
        apa_engine_free(engine(step).get());
        return {};
    }
    if (op == "start") {
        auto started = std::make_unique<apa::generation>(engine(step).generate(request_of(step)));
        generations[member(step, "gen")] = std::move(started);
        return {};
    }
    if (op == "pull") return pull(step);
    if (op == "next") {
        std::string piece;
        const long timeout = std::stol(member(step, "timeout_ms"));
        using limit = std::optional<std::chrono::milliseconds>;
        return {"", generation(step).wait(timeout < 0 ? limit() : limit(timeout), piece)};
    }
    if (op == "cancel") return generation(step).cancel(), outcome{};
    if (op == "free") return apa_gen_free(generation(step).get()), outcome{}; // As with close.
    if (op == "result") {
        const std::string json = generation(step).result();
        return {member(json.c_str(), "finish_reason") + " " + member(json.c_str(), "policy_version")};
    }
    if (op == "feedback") {
        const std::string id = json_member(step, "gen") ? generation(step).id() : member(step, "id");
        engine(step).feedback("{\"generation_id\":\"" + id + "\",\"rating\":" + member(step, "rating") + "}");
        return {};
    }
    if (op == "step") return {member(engine(step).train_step().c_str(), "outcome")};
    if (op == "policy") return {std::to_string(engine(step).policy_version())};
    if (op == "sync") return {std::to_string(engine(step).sync())};
    if (op == "rollback") return {std::to_string(engine(step).rollback())};
    if (op == "activate") return engine(step).activate(std::stoul(member(step, "version"))), outcome{};
    if (op == "versions") {
        const std::string list = engine(step).policy_versions();
        int count = 0;
        for (const char *p = json_first(list.c_str()); p; p = json_next(p))
            count++;
        return {std::to_string(count)};
    }
    if (op == "count") return {std::to_string(engine(step).count_tokens(text_of(step)))};
    if (op == "render") return {hex(engine(step).render(raw(json_member(step, "messages"))))};
    if (op == "many") return many(step);
    throw std::logic_error("no operation " + op);
}

} // namespace

int main(int argc, char **argv)
{
    std::ifstream file(argc == 4 ? argv[1] : "");
    if (!file) {
        std::cerr << "usage: run CASES MODEL DATA\n";
        return 2;
    }
    std::stringstream buffer;
    buffer << file.rdbuf();
    const std::string cases = buffer.str();
    model = argv[2];
    data = argv[3];
    for (const char *test = json_first(json_space(cases.c_str())); test; test = json_next(test)) {
        const char *only = json_member(test, "only");
        if (only && raw(only).find("\"cpp\"") == std::string::npos) continue;
        int number = 0;
        for (const char *step = json_first(json_member(test, "steps")); step; step = json_next(step)) {
            outcome o;
            try {
                o = run(step);
            } catch (const apa::error &failed) {
                o.status = failed.status();
            }
            std::cout << member(test, "name") << '\t' << number++ << '\t' << o.value << '\t' << name_of(o.status) << '\n';
        }
        generations.clear();
        engines.clear();
    }
}
