// Command lines that name what a search was in doubt about.
#pragma once

#include "results.hpp"

#include <string>
#include <vector>

namespace verify {

/// One for each way to read what was not used, ready for a shell; none where names alone do not help.
[[nodiscard]] std::vector<std::string> commands_for(const std::string& path, const omission& other);

/// The one that names all layers like this outright; empty where its names are those of a known family, or
/// of the caller.
[[nodiscard]] std::string command_for(const std::string& path, const moe_layer& layer);

}  // namespace verify
