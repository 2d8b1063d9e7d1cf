// The whole loop on one page: talk, rate, learn, talk again, go back.
//
//   cargo build --release
//   c++ -std=c++17 -Iinclude examples/embed.cpp -Ltarget/release -lapa -Wl,-rpath,target/release -o embed
//   ./embed MODEL.gguf DATA_DIR

#include <apa.hpp>

#include <cmath>
#include <iostream>

namespace {

constexpr int answers = 16;
constexpr double wanted = 80;

// Prints an answer as it comes; returns its id, which names it for feedback, and its text.
std::pair<std::string, std::string> talk(apa::engine &engine)
{
    auto answer = engine.generate(R"({"messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 64})");
    std::string text;
    for (const std::string &piece : answer) {
        std::cout << piece << std::flush;
        text += piece;
    }
    std::cout << '\n';
    return {answer.id(), text};
}

int run(const std::string &model, const std::string &data)
{
    // This program says when to train; by default the engine does so by itself.
    apa::engine engine{apa::options{}.set("model", model).set("data", data).set("train.auto", "false")};
    const auto first = engine.policy_version();

    for (int i = 0; i < answers; i++) {
        const auto [id, text] = talk(engine);
        // Likes answers of about `wanted` letters: 1 at that length, falling towards -1.
        const double off = std::abs(static_cast<double>(text.size()) - wanted);
        engine.reward(id, 2 * wanted / (wanted + off) - 1);
    }

    std::cout << "training: " << engine.train_step() << '\n';
    const auto learned = engine.policy_version();
    if (learned == first) {
        std::cerr << "embed: the step published no version\n";
        return 1;
    }
    talk(engine);
    std::cout << "versions: " << first << ", then " << learned << ", back to " << engine.rollback() << '\n';
    return 0;
}

} // namespace

int main(int argc, char **argv)
{
    if (argc != 3) {
        std::cerr << "usage: " << argv[0] << " MODEL.gguf DATA_DIR\n";
        return 2;
    }
    try {
        return run(argv[1], argv[2]);
    } catch (const apa::error &failed) {
        std::cerr << "embed: " << failed.what() << '\n';
        return 1;
    }
}
