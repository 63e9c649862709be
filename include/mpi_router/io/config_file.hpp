// The config.json beside a checkpoint, as JSON.
#pragma once

#include <mpi_router/core/config.hpp>

#include <nlohmann/json.hpp>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>

MPIROUTER_BEGIN

/// The text of a config.json, or why there is none to be had.
struct config_text {
  std::string text;
  std::string problem;  ///< why it could not be read; empty if it could
};

/// The file of that name in a folder, or beside a file; nothing where there is none.
[[nodiscard]] inline std::optional<config_text> read_beside(const std::filesystem::path& checkpoint,
                                                            const char* name) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto path = (fs::is_directory(checkpoint, error) ? checkpoint : checkpoint.parent_path()) / name;
  if (!fs::is_regular_file(path, error)) {
    return std::nullopt;
  }
  constexpr std::uintmax_t longest = 64U << 20U;
  if (fs::file_size(path, error) > longest) {
    return config_text{{}, std::string("is too long for a ") + name};
  }
  std::ifstream in(path, std::ios::binary);
  return config_text{{std::istreambuf_iterator<char>(in), {}}, {}};
}

/// JSON as Python writes it: NaN, Infinity and -Infinity, which are no JSON, are null. Discarded where it is
/// none even so.
[[nodiscard]] inline nlohmann::json parse_python_json(std::string_view text) {
  auto strict = nlohmann::json::parse(text, nullptr, false);
  if (!strict.is_discarded()) {
    return strict;
  }
  std::string out;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size();) {
    std::size_t taken = 1;
    if (in_string && text[i] == '\\') {
      taken = std::min<std::size_t>(2, text.size() - i);
    } else if (text[i] == '"') {
      in_string = !in_string;
    } else if (!in_string) {
      for (const std::string_view word : {"-Infinity", "Infinity", "NaN"}) {
        if (text.substr(i).starts_with(word)) {
          out += "null";
          i += word.size();
          taken = 0;
          break;
        }
      }
    }
    out += text.substr(i, taken);
    i += taken;
  }
  return nlohmann::json::parse(out, nullptr, false);
}

/// The first object under one of these keys, at the top or in a part of a composite config; null if there is
/// none. The parts go `depth` levels down.
[[nodiscard]] inline const nlohmann::json* find_object(const nlohmann::json& config,
                                                       std::initializer_list<const char*> keys,
                                                       int depth = 3) {
  if (!config.is_object() || depth == 0) {
    return nullptr;
  }
  for (const char* key : keys) {
    if (const auto it = config.find(key); it != config.end() && it->is_object()) {
      return &*it;
    }
  }
  for (const char* part : {"text_config", "language_config", "llm_config", "thinker_config"}) {
    if (const auto it = config.find(part); it != config.end()) {
      if (const auto* found = find_object(*it, keys, depth - 1)) {
        return found;
      }
    }
  }
  return nullptr;
}

MPIROUTER_END
