#include "compare_run.hpp"

#include "compare.hpp"
#include "compare_records.hpp"
#include "compare_report.hpp"
#include "compare_table.hpp"
#include "find_layers.hpp"
#include "gpu_room.hpp"
#include "help.hpp"
#include "hints.hpp"
#include "options.hpp"
#include "outputs.hpp"
#include "progress.hpp"
#include "terminal.hpp"

#include <mpi_router/io/moe/gguf_config.hpp>
#include <mpi_router/io/moe_layers.hpp>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <map>

namespace verify {

namespace {

index_t known_top_k(const mpi_router::checkpoint& model) {
  const auto config = mpi_router::config_of(model);
  return config ? config->experts_per_token.value_or(0) : 0;
}

/// K, and who says so.
void set_top_k(const compare_arguments& c, const std::deque<mpi_router::checkpoint>& models,
               comparison_result& result) {
  result.top_k = c.top_k;
  result.top_k_from = "--top-k";
  for (std::size_t i = 0; i < models.size() && !result.top_k; ++i) {
    if (const index_t known = known_top_k(models[i]); known > 0) {
      result.top_k = known;
      result.top_k_from = i == 0 ? "the config of A" : "the config of B";
    }
  }
}

/// Throws input_error unless some layer could be compared.
void check_common(const comparison_result& result) {
  if (std::ranges::any_of(result.layers, [](const auto& pair) { return pair.problem.empty(); })) {
    return;
  }
  const auto some = [](const std::vector<const moe_layer*>& layers) {
    return layers.empty() ? std::string("none") : layers.front()->name;
  };
  throw input_error(result.layers.empty()
                        ? fmt::format("no layer of A is one of B: A has {}, B has {}", some(result.only_a),
                                      some(result.only_b))
                        : fmt::format("no layer can be compared: {}: {}", result.layers.front().a->name,
                                      result.layers.front().problem));
}

/// The exit status, and on the standard error what it rests on.
int verdict(const comparison_result& result, std::optional<double> least) {
  if (!least) {
    return 0;
  }
  index_t near = 0;
  for (const auto& pair : result.layers) {
    near += std::ranges::count_if(
        pair.pairs, [&](const auto& e) { return e.row.cosine >= *least && e.direction.cosine >= *least; });
  }
  const auto covered = coverage_of(result);
  fmt::print(stderr, "{} of {} experts have cosines of at least {:g}\n", near, covered.experts, *least);
  return covered.is_complete() && near == covered.experts ? 0 : 1;
}

/// The layers of both checkpoints.
struct both_found {
  std::vector<moe_layers> found;
  std::vector<chosen_layers> chosen;

  both_found(const arguments& a, const std::deque<mpi_router::checkpoint>& models,
             const command_maker& commands) {
    found.reserve(models.size());  // the layers stay where they are
    for (const auto& model : models) {
      found.push_back(find_some(model, a, commands));
      chosen.push_back(choose(found.back(), selected(a)));
      require(!chosen.back().asked.empty(),
              fmt::format("{}: no layer has a number of --layers {}", model.path().string(), a.layers));
      for (const index_t number : lone_numbers(a.layers)) {
        require(has_number(found.back(), number), fmt::format("{}: no layer has the number {} of --layers {}",
                                                              model.path().string(), number, a.layers));
      }
    }
  }

  [[nodiscard]] static index_t experts_in(const std::vector<const moe_layer*>& layers) {
    index_t experts = 0;
    for (const auto* layer : layers) {
      experts += layer->num_experts;
    }
    return experts;
  }
  [[nodiscard]] std::vector<const moe_layer*> layers() const {
    auto all = chosen[0].asked;
    all.insert(all.end(), chosen[1].asked.begin(), chosen[1].asked.end());
    return all;
  }
  [[nodiscard]] index_t num_experts() const {
    return experts_in(chosen[0].asked) + experts_in(chosen[1].asked);
  }

  [[nodiscard]] comparison_result without_numbers(const compare_arguments& c) const {
    comparison_result result;
    result.path_a = c.a;
    result.path_b = c.b;
    result.found_a = &found[0];
    result.found_b = &found[1];
    for (const auto& some : chosen) {
      result.layers_skipped = std::max(result.layers_skipped, static_cast<index_t>(some.skipped.size()));
      result.experts_skipped = std::max(result.experts_skipped, experts_in(some.skipped));
    }
    return result;
  }
};

/// Makes the command lines that settle what is in doubt: those whose names are in both models, with the other
/// options as in `a`.
class command_lines {
 public:
  command_lines(const arguments& a, const std::deque<mpi_router::checkpoint>& models)
      : a_(&a), models_(&models) {}

  std::vector<std::string> operator()(const omission& other) {
    std::vector<std::string> out;
    for (const auto& hint : other.hints) {
      auto command = command_of(a_->again, "", hint);
      const auto [it, is_new] = works_.try_emplace(command, false);
      if (is_new) {
        it->second = finds_layers(hint);
      }
      if (it->second) {
        out.push_back(std::move(command));
      }
    }
    return out;
  }

 private:
  [[nodiscard]] bool finds_layers(const mpi_router::naming_hint& hint) const {
    auto wanted = naming(*a_);
    wanted.patterns = hint.patterns;
    wanted.layout = hint.layout;
    wanted.layout_of_router = hint.layout_of_router;
    return std::ranges::none_of(*models_, [&](const auto& m) { return find_moe_layers(m, wanted).empty(); });
  }

  const arguments* a_;
  const std::deque<mpi_router::checkpoint>* models_;
  std::map<std::string, bool> works_;  // layers in doubt share their command lines
};

}  // namespace

void define_compare(CLI::App& app, arguments& a, compare_arguments& c) {
  app.add_option("A", c.a, "Before: a .safetensors or .gguf file, a folder of shards, or an index file")
      ->type_name("PATH")
      ->required();
  app.add_option("B", c.b, "After: in the same or any other format")->type_name("PATH")->required();
  add_common_options(app, a);
  app.add_option("--top-k", c.top_k, "Experts that a token chooses; without it what the config says")
      ->type_name("K");
  app.add_option("--tokens", c.tokens,
                 "Inputs of the router, [T, D]: FILE.safetensors, or FILE.safetensors:TENSOR; without it "
                 "Gaussian ones")
      ->type_name("FILE");
  app.add_option("--require-cosine", c.require_cosine,
                 "Exit with 1 unless every expert of both has a counterpart with cosines, of the rows and of "
                 "the directions, of at least this");
  add_naming_options(app, a);
  finish_options(app);
  app.footer(compare_footer);
}

namespace {

/// Writes what was asked for; a report that could not be drawn is told, and is no failure.
void write_outputs(const arguments& a, const comparison_result& result, index_t num_experts,
                   const outputs& files) {
  std::string problem;
  if (files.page) {
    problem = write_comparison(*files.page, places_of(a.report).data, result, a.command);
  }
  if (files.json) {
    files.json->write(to_json(result));
  }
  const bool lines = a.experts || (!a.summary && num_experts <= 256);
  fmt::print("{}",
             a.json == "-" ? to_json(result) : format_comparison(result, {lines, wants_colour(a.colour)}));
  flush_output();
  files.commit();
  tell_report(files, a.report, problem);
}

}  // namespace

int run_compare(const arguments& a, const compare_arguments& c) {
  require(!c.top_k || *c.top_k >= 1, "--top-k must be at least 1");
  require(!c.require_cosine || std::abs(*c.require_cosine) <= 1,
          "--require-cosine must lie between -1 and 1");
  std::optional<gpu> device;
  if (a.gpu) {
    device.emplace(0);
  }
  std::deque<mpi_router::checkpoint> models;
  for (const auto& path : {c.a, c.b}) {
    models.emplace_back(path);
  }
  const command_maker commands = command_lines(a, models);
  const both_found found(a, models, commands);
  const std::string json = a.json == "-" ? "" : a.json;
  const auto files = open_outputs(
      {json, "", a.report, ""}, models,
      c.tokens.empty() ? std::vector<std::filesystem::path>{} : std::vector{file_of_tokens(c.tokens)});
  auto result = found.without_numbers(c);
  set_top_k(c, models, result);
  if (device) {
    make_room(*device, a, {.device = &*device}, found.layers());
    result.device = device->name();
  }
  {
    progress_bar bar("comparing");
    compare(found.chosen[0].asked, found.chosen[1].asked, {c.tokens, result.top_k},
            device ? &*device : nullptr, result, [&bar](index_t done, index_t all) { bar(done, all); });
  }
  check_common(result);
  result.others = left_out_of(result, commands);
  write_outputs(a, result, found.num_experts(), files);
  return verdict(result, c.require_cosine);
}

}  // namespace verify
