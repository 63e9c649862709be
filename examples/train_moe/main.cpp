// train_moe: the same small MoE language model with each of four routers, over a few seeds.
#include "report.hpp"

#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>

namespace {

using namespace train;

struct arguments {
  std::string text;
  std::string out = "train_moe-out";
  std::string routers = "usual,mpi,retraction-only,power-step-only";
  index_t seeds = 3;
  index_t first_seed = 1;
  index_t threads = static_cast<index_t>(std::max(1U, std::thread::hardware_concurrency()));
  bool quiet = false;
  settings training{};
};

/// One line on a terminal: how much is done and how long the rest will take.
class progress_bar {
 public:
  progress_bar(index_t total, bool shown) : total_(total), shown_(shown && isatty(fileno(stderr)) == 1) {}
  void advance() {
    const index_t done = ++done_;
    if (!shown_ || (done % 8 != 0 && done != total_)) return;
    const std::lock_guard lock(mutex_);
    using seconds = std::chrono::duration<double>;
    const double spent = seconds(std::chrono::steady_clock::now() - start_).count();
    const double rest = spent * static_cast<double>(total_ - done) / static_cast<double>(done);
    const auto filled = static_cast<std::size_t>(40 * done / total_);
    fmt::print(stderr, "\r[{:<40}] {:3}%  {:3.0f} s left ", std::string(filled, '='), 100 * done / total_,
               rest);
    if (done == total_) fmt::print(stderr, "\r{:60}\r", "");
    std::fflush(stderr);
  }

 private:
  index_t total_;
  bool shown_;
  std::atomic<index_t> done_{0};
  std::mutex mutex_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

std::vector<router_kind> parse_routers(const std::string& names) {
  std::vector<router_kind> out;
  for (const std::string& name : CLI::detail::split(names, ',')) {
    const auto found = std::find_if(all_routers.begin(), all_routers.end(),
                                    [&](router_kind kind) { return to_string(kind) == name; });
    if (found == all_routers.end()) throw std::runtime_error("there is no router '" + name + "'");
    out.push_back(*found);
  }
  return out;
}

/// Every run, `threads` of them at a time. A run does not know of the others.
std::vector<run_result> run_all(const arguments& a, const corpus& text,
                                const std::vector<router_kind>& routers) {
  const auto count = static_cast<index_t>(routers.size()) * a.seeds;
  std::vector<run_result> runs(static_cast<std::size_t>(count));
  progress_bar bar(count * a.training.steps, !a.quiet);
  std::atomic<index_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&] {
    try {
      for (index_t i = next++; i < count; i = next++) {
        const router_kind router = routers[static_cast<std::size_t>(i / a.seeds)];
        const auto seed = static_cast<std::uint64_t>(a.first_seed + i % a.seeds);
        runs[static_cast<std::size_t>(i)] =
            train_one(text, a.training, router, seed, [&bar] { bar.advance(); });
      }
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      failure = std::current_exception();
      next = count;
    }
  };
  {
    std::vector<std::jthread> pool;
    for (index_t t = 1; t < std::min(a.threads, count); ++t) pool.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
  return runs;
}

int run(arguments a) {
  std::filesystem::path path = a.text.empty() ? default_text() : std::filesystem::path(a.text);
  if (path.empty()) throw std::runtime_error("there is no default text on this system: give one with --text");
  const auto routers = parse_routers(a.routers);
  const corpus text(path);
  const settings& s = a.training;
  fmt::print("{}: {} bytes to train on, {} to test with\n", path.string(), text.train_bytes(),
             text.test_bytes());
  fmt::print(
      "{} layers, D = {}, {} experts of F = {}, top {}; {} steps of {} bytes; C′ = {}; seeds {}–{}\n\n",
      s.sizes.layers, s.sizes.moe.hidden, s.sizes.moe.experts, s.sizes.moe.ffn, s.sizes.moe.top_k, s.steps,
      s.sequences * s.sizes.length, s.c_prime, a.first_seed, a.first_seed + a.seeds - 1);
  std::fflush(stdout);

  const auto runs = run_all(a, text, routers);
  print_summary(stdout, runs, s.sizes.moe.experts, s.sizes.moe.top_k);

  const std::filesystem::path out = a.out;
  std::filesystem::create_directories(out);
  write_traces(out / "traces.csv", runs);
  fmt::print("\nwritten to {}:\n  traces.csv\n", out.string());
  for (const auto& r : runs) {
    if (r.seed != static_cast<std::uint64_t>(a.first_seed)) continue;
    const auto name = fmt::format("{}.safetensors", to_string(r.router));
    write_checkpoint(out / name, r, s);
    fmt::print("  {}\n", name);
  }
  return 0;
}

int command_line(int argc, char** argv) {
  arguments a;
  CLI::App app(
      "Trains a small byte-level MoE language model with the usual router, with MPI, with its retraction\n"
      "only and with its power step only, and compares loss, alignment and balance over a few seeds.");
  app.option_defaults()->always_capture_default();
  app.add_option("--text", a.text,
                 "Text file or folder of text files; default: the licence texts of a Debian system");
  app.add_option("--out", a.out, "Folder for traces.csv and a checkpoint of the first seed of each router");
  app.add_option("--routers", a.routers, "Which routers to compare");
  app.add_option("--seeds", a.seeds, "Seeds for each router")->check(CLI::PositiveNumber);
  app.add_option("--first-seed", a.first_seed, "The first of them")->check(CLI::NonNegativeNumber);
  app.add_option("--threads", a.threads, "Runs at a time; the numbers do not depend on it")
      ->check(CLI::PositiveNumber);
  app.add_option("--steps", a.training.steps, "Steps of AdamW")->check(CLI::PositiveNumber);
  app.add_option("--batch", a.training.sequences, "Sequences in a batch")->check(CLI::PositiveNumber);
  app.add_option("--length", a.training.sizes.length, "Bytes in a sequence")->check(CLI::PositiveNumber);
  app.add_option("--every", a.training.every, "Steps between measurements")->check(CLI::PositiveNumber);
  app.add_option("--rate", a.training.rate, "Largest learning rate")->check(CLI::PositiveNumber);
  app.add_option("--balance", a.training.coefficient, "Coefficient of the balance loss")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--c-prime", a.training.c_prime, "C′, the scale-free radius")->check(CLI::PositiveNumber);
  app.add_option("--layers", a.training.sizes.layers, "Layers")->check(CLI::PositiveNumber);
  app.add_option("--experts", a.training.sizes.moe.experts, "Experts, N")->check(CLI::PositiveNumber);
  app.add_option("--top-k", a.training.sizes.moe.top_k, "Experts for each token, K")
      ->check(CLI::PositiveNumber);
  app.add_option("--hidden", a.training.sizes.moe.hidden, "Hidden dimension, D, a multiple of 4 heads")
      ->check(CLI::PositiveNumber);
  app.add_option("--ffn", a.training.sizes.moe.ffn, "Neurons of an expert, F")->check(CLI::PositiveNumber);
  app.add_flag("--quiet", a.quiet, "No progress bar (there is none without a terminal)");
  CLI11_PARSE(app, argc, argv);
  const auto& sizes = a.training.sizes;
  if (sizes.moe.hidden % sizes.heads != 0) throw std::runtime_error("--hidden must be a multiple of 4");
  if (sizes.moe.top_k > sizes.moe.experts) throw std::runtime_error("--top-k is more than --experts");
  return run(std::move(a));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return command_line(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train_moe: %s\n", error.what());
    return 2;
  }
}
