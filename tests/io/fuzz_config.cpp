// libFuzzer: any text may stand in a config.json, and is read or set aside; nothing is thrown.
#include "fuzzing.hpp"

#include <mpi_router/io/moe/model_config.hpp>
#include <mpi_router/io/packed/quantization.hpp>

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto config = mpi_router::parse_model_config(text);
  const auto json = mpi_router::parse_python_json(text);
  fuzzing::require(config.problem.empty() == json.is_object());
  if (config.moe_layers) {
    fuzzing::require(std::ranges::is_sorted(*config.moe_layers, std::ranges::less_equal{}));
    fuzzing::require(config.moe_layers->empty() || config.moe_layers->front() >= 0);
  }
  fuzzing::require(!config.num_experts || *config.num_experts > 1);
  const auto said = mpi_router::parse_quantization(json);
  fuzzing::require(!said.block_rows || *said.block_rows > 0);
  fuzzing::require(!said.all.bits || *said.all.bits > 0);
  return 0;
}
