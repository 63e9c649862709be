#include "gpu_room.hpp"

#include "parallel.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace verify {

void make_room(gpu& device, const arguments& a, const analysis_options& options,
               const std::vector<const moe_layer*>& layers) {
  index_t ffn_dim = 0;
  index_t hidden_dim = 0;
  for (const auto* layer : layers) {
    const auto parts = std::max<index_t>(1, static_cast<index_t>(layer->measured.size()));
    const index_t rows = parts * layer->ffn_dim;
    if (multiplies_on_gpu(options, rows, layer->hidden_dim)) {
      ffn_dim = std::max(ffn_dim, rows);
      hidden_dim = std::max(hidden_dim, layer->hidden_dim);
    }
  }
  if (ffn_dim == 0) {
    fmt::print(stderr, "--gpu: all experts are done on the host, for none has min(F, D) above {}\n",
               svd_up_to);
    return;
  }
  const int room = device.make_room(ffn_dim, hidden_dim);
  use_threads(a.threads > 0 ? std::min(a.threads, room) : room);
}

}  // namespace verify
