// The experts of a run that go to the GPU, and how many of them are under way at once.
#pragma once

#include "analyse.hpp"
#include "arguments.hpp"

#include <vector>

namespace verify {

/// Makes room on the device for experts of these layers, and has the loops of parallel.hpp use as many
/// threads, or what --threads says if that is fewer. Says so where none goes there.
void make_room(gpu& device, const arguments& a, const analysis_options& options,
               const std::vector<const moe_layer*>& layers);

}  // namespace verify
