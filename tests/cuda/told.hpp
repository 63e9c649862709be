// What the GPU checks share beyond gpu_support.hpp: memory for all that a forward tells, and refusals.
#pragma once

#include "gpu_support.hpp"

namespace gpu_check {

/// All that a forward tells, in poisoned memory.
struct told_on_device {
  device_array<double> rayleigh, cosine, residual, energy, row_norm, image_norm, saved_norm;
  device_array<float> direction;
  device_array<status> statuses, saved_statuses;
  told_on_device(index_t n, index_t d)
      : rayleigh(size(n)),
        cosine(size(n)),
        residual(size(n)),
        energy(size(n)),
        row_norm(size(n)),
        image_norm(size(n)),
        saved_norm(size(n)),
        direction(size(n * d)),
        statuses(size(n)),
        saved_statuses(size(n)) {}
  static std::size_t size(index_t n) { return static_cast<std::size_t>(n); }
  [[nodiscard]] cuda::step_by_products told() const {
    return {.statuses = statuses.data(),
            .rayleigh = rayleigh.data(),
            .cosine = cosine.data(),
            .residual = residual.data(),
            .energy = energy.data(),
            .row_norm = row_norm.data(),
            .image_norm = image_norm.data()};
  }
  [[nodiscard]] cuda::saved_step saved() const {
    return {direction.data(), saved_norm.data(), saved_statuses.data()};
  }
};

/// 1 to 9, 1 to `most`, or a multiple of 8 up to about that.
inline index_t any_extent(generator& g, index_t most) {
  return uniform(g, 0, 2) == 0 ? uniform(g, 1, 9)
         : uniform(g, 0, 1)    ? uniform(g, 1, most)
                               : uniform(g, 1, most / 8 + 1) * 8;
}

/// The call throws usage_error, and says these words.
template <class Call>
void refused(const std::string& words, const Call& call) {
  try {
    call();
    check(false, "not refused: " + words);
  } catch (const usage_error& e) {
    check(std::string(e.what()).find(words) != std::string::npos,
          "refused with \"" + std::string(e.what()) + "\", not \"" + words + "\"");
  }
}

}  // namespace gpu_check
