// What is known of a model beside its weights: from config.json, or from the metadata of a GGUF file.
#pragma once

#include <mpi_router/io/checkpoint.hpp>
#include <mpi_router/io/moe/model_config.hpp>

#include <numeric>

MPIROUTER_BEGIN

/// The counts that a GGUF file states under the name of its architecture: "qwen3moe.expert_count", ….
[[nodiscard]] inline model_config config_of(const gguf_file& file) {
  model_config out;
  const auto architecture = file.text("general.architecture");
  if (!architecture) {
    return out;
  }
  const auto count = [&](const char* key) {
    const auto value = file.count(core::concatenate(*architecture, ".", key));
    return value && *value <= 1'000'000 ? std::optional(static_cast<index_t>(*value)) : std::nullopt;
  };
  out.names.push_back(detail::moe::letters_and_digits(*architecture));
  out.hidden_dim = count("embedding_length");
  const auto experts = count("expert_count");
  out.num_experts = experts && *experts > 1 ? experts : std::nullopt;
  const auto used = count("expert_used_count");
  out.experts_per_token = used && *used >= 1 ? used : std::nullopt;
  const auto layers = count("block_count");
  const auto step = count("interleave_moe_layer_step").value_or(1);
  if (layers && out.num_experts && step == 1) {
    std::vector<index_t> numbers(static_cast<std::size_t>(*layers));
    std::iota(numbers.begin(), numbers.end(), index_t{0});
    const auto dense = count("leading_dense_block_count").value_or(0);
    const auto predicted = count("nextn_predict_layers").value_or(0);  // counted among the blocks
    numbers.resize(static_cast<std::size_t>(std::max<index_t>(*layers - predicted, 0)));
    std::erase_if(numbers, [&](index_t i) { return i < dense; });
    out.moe_layers = std::move(numbers);
  }
  return out;
}

/// Of a checkpoint: its config.json, or its GGUF metadata; nothing where there is neither.
[[nodiscard]] inline std::optional<model_config> config_of(const checkpoint& model) {
  return model.gguf().empty() ? read_model_config(model.path())
                              : std::optional(config_of(model.gguf().front()));
}

MPIROUTER_END
