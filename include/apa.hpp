/*
 * libapa for C++17: owners that free what they hold, exceptions, and answers as ranges. A thin layer over apa.h, which says what each
 * call does; everything here is inline, so it has no ABI of its own.
 *
 *   apa::engine engine{apa::options{}.set("model", "base.gguf").set("data", "data")};
 *   auto answer = engine.generate(R"({"prompt": "Once upon a time"})");
 *   for (std::string_view text : answer) std::cout << text;
 *   engine.feedback(R"({"generation_id": ")" + answer.id() + R"(", "thumbs": "up"})");
 *
 * JSON goes in and comes out as text: use the library of your choice. Owners move and don't copy. Like the handles they hold, they may
 * be used from any thread, but not moved or destroyed while another thread uses them.
 */
#ifndef APA_HPP
#define APA_HPP

#include "apa.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace apa {

/** What a call failed with: the sentence, and its status. */
class error : public std::runtime_error {
public:
    error(apa_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    /** Negative; APA_ERR_ARG and the others. */
    apa_status status() const noexcept { return status_; }

private:
    apa_status status_;
};

namespace detail {

template <auto Free> struct freed_by {
    template <class T> void operator()(T *handle) const noexcept { Free(handle); }
};
template <class T, auto Free> using owner = std::unique_ptr<T, freed_by<Free>>;

/** Makes a call, whose last argument is where its error goes; throws that. Outcomes that are no failure are handed on. */
template <class Call> apa_status check(Call &&call) {
    apa_error *raw = nullptr;
    const apa_status status = call(&raw);
    if (status >= 0) return status;
    const owner<apa_error, apa_error_free> owned(raw);
    throw error(status, apa_error_message(raw));
}

inline std::string take(apa_string *raw) {
    const owner<apa_string, apa_string_free> owned(raw);
    return std::string(apa_string_data(raw), apa_string_len(raw));
}

/** A call that writes text. */
template <class Call> std::string text(Call &&call) {
    apa_string *out = nullptr;
    check([&](apa_error **e) { return call(&out, e); });
    return take(out);
}

/** What `apa_gen_next` calls a time: negative is without limit. */
inline std::int64_t milliseconds(std::optional<std::chrono::milliseconds> timeout) {
    return timeout ? static_cast<std::int64_t>(timeout->count() < 0 ? 0 : timeout->count()) : -1;
}

} // namespace detail

namespace detail {

using log_function = std::function<void(std::int32_t, std::string_view)>;

/** The function that the log goes to; one a process. */
class log_hook {
public:
    static log_hook &get() {
        static log_hook one;
        return one;
    }
    /** What the library had before is not running any more when this returns, so it may go. */
    void set(std::int32_t level, log_function next) {
        if (inside()) throw error(APA_ERR_ARG, "called from inside the log's function, expected another thread or a later time");
        const std::lock_guard<std::mutex> guard(lock_);
        auto owned = next ? std::make_unique<log_function>(std::move(next)) : nullptr;
        const apa_log_fn call = owned ? &log_hook::line : nullptr;
        check([&](apa_error **e) { return apa_log_set(level, call, owned.get(), e); });
        current_ = std::move(owned);
    }
    log_hook(const log_hook &) = delete;
    log_hook &operator=(const log_hook &) = delete;

private:
    log_hook() = default;
    /** Engines that outlive it log nowhere. */
    ~log_hook() { apa_log_set(0, nullptr, nullptr, nullptr); }
    static bool &inside() {
        static thread_local bool is = false;
        return is;
    }
    static void line(void *data, std::int32_t level, const char *json, std::size_t length) noexcept {
        inside() = true;
        try {
            (*static_cast<const log_function *>(data))(level, std::string_view(json, length));
        } catch (...) {
            // Nobody on the library's threads could catch it.
        }
        inside() = false;
    }

    std::mutex lock_;
    std::unique_ptr<log_function> current_;
};

} // namespace detail

/** Has `log` called for each line of the log up to `level` (1 error, 2 warning, 3 information, 4 debugging, 5 tracing), with its level
 * and its JSON, on any thread, one line at a time. One function a process: it replaces the earlier one, which is not running any more
 * when this returns. What `log` throws is dropped, and it must not call this library. */
inline void set_log(std::int32_t level, std::function<void(std::int32_t, std::string_view)> log) {
    detail::log_hook::get().set(level, std::move(log));
}
/** Takes it back; so does the end of the process. */
inline void clear_log() { detail::log_hook::get().set(0, nullptr); }

/** Settings of an engine to be opened. */
class options {
public:
    options() {
        apa_options *raw = nullptr;
        detail::check([&](apa_error **e) { return apa_options_new(&raw, e); });
        handle_.reset(raw);
    }
    /** Sets a key from text, as on a command line. */
    options &set(std::string_view key, std::string_view value) & {
        detail::check([&](apa_error **e) {
            return apa_options_set(get(), key.data(), key.size(), value.data(), value.size(), e);
        });
        return *this;
    }
    options &&set(std::string_view key, std::string_view value) && { return std::move(set(key, value)); }
    /** Sets a key from JSON; an empty key takes an object of sections. */
    options &set_json(std::string_view key, std::string_view json) & {
        detail::check([&](apa_error **e) {
            return apa_options_set_json(get(), key.data(), key.size(), json.data(), json.size(), e);
        });
        return *this;
    }
    options &&set_json(std::string_view key, std::string_view json) && { return std::move(set_json(key, json)); }
    apa_options *get() const noexcept { return handle_.get(); }

private:
    detail::owner<apa_options, apa_options_free> handle_;
};

/** An answer being made: a range of its text in whole codepoints, to be gone through once. Destroyed, it is cancelled. */
class generation {
public:
    explicit generation(apa_gen *handle) noexcept : handle_(handle) {}

    /** Names the answer, for feedback. */
    std::string id() const {
        return detail::text([&](apa_string **out, apa_error **e) { return apa_gen_id(get(), out, e); });
    }
    /** More text; nothing at the end. Waits as long as it takes. */
    std::optional<std::string> next() {
        std::string piece;
        return wait(std::nullopt, piece) == APA_OK ? std::optional<std::string>(std::move(piece)) : std::nullopt;
    }
    /** The same for at most `timeout`: APA_OK has put text in `piece`, APA_TIMEOUT, APA_DONE and APA_CANCELLED have not. */
    apa_status wait(std::optional<std::chrono::milliseconds> timeout, std::string &piece) {
        apa_string *out = nullptr;
        const apa_status status =
            detail::check([&](apa_error **e) { return apa_gen_next(get(), detail::milliseconds(timeout), &out, e); });
        if (status == APA_OK) piece = detail::take(out);
        return status;
    }
    /** The whole of an answer that has ended, as JSON. */
    std::string result() const {
        return detail::text([&](apa_string **out, apa_error **e) { return apa_gen_result(get(), out, e); });
    }
    /** Asks it to end, from any thread. */
    void cancel() {
        detail::check([&](apa_error **e) { return apa_gen_cancel(get(), e); });
    }
    apa_gen *get() const noexcept { return handle_.get(); }

    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = std::string;
        using difference_type = std::ptrdiff_t;
        using pointer = const std::string *;
        using reference = const std::string &;

        iterator() = default;
        explicit iterator(generation *from) : from_(from) { ++*this; }
        reference operator*() const { return piece_; }
        pointer operator->() const { return &piece_; }
        iterator &operator++() {
            if (from_->wait(std::nullopt, piece_) != APA_OK) from_ = nullptr;
            return *this;
        }
        void operator++(int) { ++*this; }
        friend bool operator==(const iterator &a, const iterator &b) { return a.from_ == b.from_; }
        friend bool operator!=(const iterator &a, const iterator &b) { return a.from_ != b.from_; }

    private:
        generation *from_ = nullptr;
        std::string piece_;
    };
    iterator begin() { return iterator(this); }
    iterator end() { return iterator(); }

private:
    detail::owner<apa_gen, apa_gen_free> handle_;
};

/** News of an engine. */
class feed {
public:
    explicit feed(apa_feed *handle) noexcept : handle_(handle) {}
    /** A piece of news as JSON; nothing if none came in time. Throws APA_ERR_CLOSED once the engine is shut down. */
    std::optional<std::string> next(std::optional<std::chrono::milliseconds> timeout = std::nullopt) {
        apa_string *out = nullptr;
        const apa_status status =
            detail::check([&](apa_error **e) { return apa_feed_next(get(), detail::milliseconds(timeout), &out, e); });
        return status == APA_OK ? std::optional<std::string>(detail::take(out)) : std::nullopt;
    }
    apa_feed *get() const noexcept { return handle_.get(); }

private:
    detail::owner<apa_feed, apa_feed_free> handle_;
};

/** A serving, learning model. It is to end before `main` does: what the library has in static storage may go before the application's. */
class engine {
public:
    explicit engine(const options &options) {
        apa_engine *raw = nullptr;
        detail::check([&](apa_error **e) { return apa_engine_open(options.get(), &raw, e); });
        handle_.reset(raw);
    }

    /** Ends what runs, wakes every waiter, and frees the data folder; so does the destructor. */
    void shutdown() {
        detail::check([&](apa_error **e) { return apa_engine_shutdown(get(), e); });
    }
    std::string status() const { return text<apa_engine_status>(); }
    std::string metrics() const { return text<apa_engine_metrics>(); }
    std::size_t count_tokens(std::string_view words) const {
        std::size_t tokens = 0;
        detail::check([&](apa_error **e) { return apa_token_count(get(), words.data(), words.size(), &tokens, e); });
        return tokens;
    }
    /** A JSON array of messages as the model sees it. */
    std::string render(std::string_view messages) const {
        return detail::text([&](apa_string **out, apa_error **e) {
            return apa_chat_render(get(), messages.data(), messages.size(), out, nullptr, e);
        });
    }

    /** Queues a generation. */
    apa::generation generate(std::string_view request) {
        apa_gen *raw = nullptr;
        detail::check([&](apa_error **e) { return apa_gen_start(get(), request.data(), request.size(), &raw, e); });
        return apa::generation(raw);
    }
    /** Generates on this thread and returns the result as JSON. `on_text` sees each piece; false ends the answer; what it throws comes
     * out of here. */
    std::string generate(std::string_view request, const std::function<bool(std::string_view)> &on_text) {
        struct state {
            const std::function<bool(std::string_view)> &on_text;
            std::exception_ptr thrown;
        } state{on_text, nullptr};
        apa_string *out = nullptr;
        const auto call = [](void *data, const char *words, std::size_t length) noexcept -> std::int32_t {
            auto &s = *static_cast<struct state *>(data);
            try {
                return s.on_text(std::string_view(words, length)) ? 0 : 1;
            } catch (...) {
                s.thrown = std::current_exception();
                return -1;
            }
        };
        try {
            detail::check([&](apa_error **e) {
                return apa_generate(get(), request.data(), request.size(), call, &state, &out, e);
            });
        } catch (const error &) {
            if (state.thrown) std::rethrow_exception(state.thrown);
            throw;
        }
        return detail::take(out);
    }

    std::string feedback(std::string_view json) { return sent<apa_feedback>(json); }
    std::string preference(std::string_view json) { return sent<apa_preference>(json); }
    std::string add_sample(std::string_view json) { return sent<apa_sample_add>(json); }
    /** Deletes a user's words, and tells how many. */
    std::string forget(std::string_view user) { return sent<apa_forget>(user); }
    /** What it takes to forget a user with all that was learned from the user's words; changes nothing. */
    std::string unlearn_plan(std::string_view user) { return sent<apa_unlearn_plan>(user); }
    /** Deletes a user's words, and has the versions that learned from them replaced. */
    std::string unlearn(std::string_view user) { return sent<apa_unlearn>(user); }
    void reward(std::string_view generation_id, double reward) {
        detail::check([&](apa_error **e) {
            return apa_reward_put(get(), generation_id.data(), generation_id.size(), reward, e);
        });
    }
    /** What the engine learns, from now on. */
    feed events() { return opened<apa_events_open>(); }
    /** Answers to be scored, from now on. */
    feed answers() { return opened<apa_rewards_open>(); }

    void start_trainer() {
        detail::check([&](apa_error **e) { return apa_trainer_start(get(), e); });
    }
    void stop_trainer() {
        detail::check([&](apa_error **e) { return apa_trainer_stop(get(), e); });
    }
    std::string train_step() { return text<apa_trainer_step>(); }
    std::string trainer_status() const { return text<apa_trainer_status>(); }

    std::uint64_t policy_version() const {
        std::uint64_t version = 0;
        detail::check([&](apa_error **e) { return apa_policy_version(get(), &version, e); });
        return version;
    }
    /** Serves the newest version now, and returns it. */
    std::uint64_t sync() {
        std::uint64_t version = 0;
        detail::check([&](apa_error **e) { return apa_policy_sync(get(), &version, e); });
        return version;
    }
    std::string policy_versions() const { return text<apa_policy_list>(); }
    /// A version with the verdict over it, as JSON.
    std::string policy_show(std::uint64_t version) const {
        return detail::text([&](apa_string **out, apa_error **e) { return apa_policy_show(get(), version, out, e); });
    }
    void activate(std::uint64_t version) {
        detail::check([&](apa_error **e) { return apa_policy_activate(get(), version, e); });
    }
    std::uint64_t rollback() {
        std::uint64_t version = 0;
        detail::check([&](apa_error **e) { return apa_policy_rollback(get(), &version, e); });
        return version;
    }
    void snapshot(std::uint64_t version, std::string_view path) const {
        detail::check([&](apa_error **e) { return apa_policy_snapshot(get(), version, path.data(), path.size(), e); });
    }
    std::uint64_t restore(std::string_view path) {
        std::uint64_t version = 0;
        detail::check([&](apa_error **e) { return apa_policy_restore(get(), path.data(), path.size(), &version, e); });
        return version;
    }

    /** Serves HTTP beside the application; returns the address. */
    std::string start_http(std::string_view address = {}) {
        return detail::text([&](apa_string **out, apa_error **e) {
            return apa_http_start(get(), address.data(), address.size(), out, e);
        });
    }
    void stop_http() {
        detail::check([&](apa_error **e) { return apa_http_stop(get(), e); });
    }
    apa_engine *get() const noexcept { return handle_.get(); }

private:
    template <auto Call> std::string text() const {
        return detail::text([&](apa_string **out, apa_error **e) { return Call(get(), out, e); });
    }
    template <auto Call> std::string sent(std::string_view json) {
        return detail::text(
            [&](apa_string **out, apa_error **e) { return Call(get(), json.data(), json.size(), out, e); });
    }
    template <auto Call> feed opened() {
        apa_feed *raw = nullptr;
        detail::check([&](apa_error **e) { return Call(get(), &raw, e); });
        return feed(raw);
    }

    detail::owner<apa_engine, apa_engine_free> handle_;
};

} // namespace apa

#endif
