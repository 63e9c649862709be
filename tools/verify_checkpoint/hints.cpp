#include "hints.hpp"

#include "report.hpp"

#include <mpi_router/io/moe/hints.hpp>

namespace verify {

using word_list = std::vector<std::string>;

std::string command_of(const word_list& again, const std::string& path, const mpi_router::naming_hint& hint) {
  word_list words{"verify_checkpoint"};
  for (const auto& word : again) {
    words.push_back(word.empty() ? path : word);
  }
  words.insert(words.end(), {"--router", hint.patterns.router, "--gate", hint.patterns.gate, "--layout",
                             std::string(to_string(hint.layout))});
  if (hint.layout_of_router == mpi_router::router_layout::dn) {
    words.insert(words.end(), {"--router-layout", "dn"});
  }
  std::vector<const char*> argv;
  for (const auto& word : words) {
    argv.push_back(word.c_str());
  }
  return quoted_command(static_cast<int>(argv.size()), argv.data());
}

word_list commands_for(const word_list& again, const std::string& path, const omission& other) {
  word_list out;
  for (const auto& hint : other.hints) {
    out.push_back(command_of(again, path, hint));
  }
  return out;
}

std::string command_for(const word_list& again, const std::string& path, const moe_layer& layer) {
  return layer.family.starts_with("no known family") ? command_of(again, path, mpi_router::hint_of(layer))
                                                     : "";
}

}  // namespace verify
