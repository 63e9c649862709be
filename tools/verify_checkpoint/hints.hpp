// Command lines that name what a search was in doubt about.
#pragma once

#include "results.hpp"

#include <string>
#include <vector>

namespace verify {

/// The command line that does as `again` says with the names and layouts of `hint`, ready for a shell. In
/// `again` an empty word stands for the checkpoint at `path`.
[[nodiscard]] std::string command_of(const std::vector<std::string>& again, const std::string& path,
                                     const mpi_router::naming_hint& hint);

/// One for each way to read what was not used; none where names alone do not help.
[[nodiscard]] std::vector<std::string> commands_for(const std::vector<std::string>& again,
                                                    const std::string& path, const omission& other);

/// The one that names all layers like this outright; empty where its names are those of a known family, or
/// of the caller.
[[nodiscard]] std::string command_for(const std::vector<std::string>& again, const std::string& path,
                                      const moe_layer& layer);

}  // namespace verify
