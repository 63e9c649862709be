// What an index file says of shards, and what their names promise.
#pragma once

#include <mpi_router/io/strict_json.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

MPIROUTER_BEGIN

namespace detail {

/// Collects the weight_map of a "*.safetensors.index.json": tensor name to file name.
class index_visitor {
 public:
  using levels = std::span<const json_level>;

  explicit index_visitor(const std::filesystem::path& file) : file_(file) {}

  void open(levels at, bool is_object) {
    if (at.size() == 1 && at[0].key == "weight_map" && is_object) {
      found = true;
    } else if (!at.empty() && at[0].key == "weight_map") {
      refuse(at);
    }
  }
  void scalar(levels at, const json_scalar& value) {
    if (at[0].key != "weight_map") {
      return;
    }
    if (at.size() != 2 || value.text == nullptr) {
      refuse(at);
    }
    weight_map.emplace(at[1].key, *value.text);
  }

  bool found = false;
  std::map<std::string, std::string> weight_map;

 private:
  [[noreturn]] void refuse(levels at) const {
    io::file_failure(
        file_, "the weight_map must map tensor names to file names",
        at.size() > 1 ? core::concatenate(", and '", io::printable(at[1].key), "' does not") : "");
  }

  const std::filesystem::path& file_;
};

/// Whether `name` is a plain file name: the shards of an index lie beside it and nowhere else.
[[nodiscard]] inline bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

/// Of the shards that DeepSeek's own programs read, one for each of several processes: the experts are shared
/// out, what all of them have is in each, and the rest is in pieces.
inline constexpr std::string_view rank_mark = "-mp";

/// What a file name says of a series of shards: "model-00002-of-00003.safetensors" is shard 2 of 3, and
/// "model1-mp8.safetensors" that of process 1 of 8.
struct shard_name {
  std::string before;  ///< "model-"
  std::string after;   ///< ".safetensors"
  std::uint64_t number = 0;
  std::uint64_t count = 0;
  std::size_t number_digits = 0;
  std::string count_text;   ///< with its zeros
  std::string_view mark{};  ///< "-of-" or rank_mark

  /// The name of another shard of the series.
  [[nodiscard]] std::string sibling(std::uint64_t other) const {
    std::string digits = std::to_string(other);
    digits.insert(0, number_digits > digits.size() ? number_digits - digits.size() : 0, '0');
    return core::concatenate(before, digits, mark, count_text, after);
  }
};

/// With that mark between number and count.
[[nodiscard]] inline std::optional<shard_name> shard_name_with(std::string_view mark, std::string_view file) {
  constexpr std::string_view digits = "0123456789";
  const auto at = file.rfind(mark);
  if (at == file.npos) {
    return std::nullopt;
  }
  const auto last_before = file.substr(0, at).find_last_not_of(digits);
  const auto begin = last_before == file.npos ? 0 : last_before + 1;
  const auto count = file.substr(at + mark.size());
  const auto end = std::min(count.find_first_not_of(digits), count.size());
  shard_name name{std::string(file.substr(0, begin)),
                  std::string(count.substr(end)),
                  0,
                  0,
                  at - begin,
                  std::string(count.substr(0, end)),
                  mark};
  const auto read = [](std::string_view text, std::uint64_t& value) {
    return !text.empty() && text.size() < 10 &&
           std::from_chars(text.data(), text.data() + text.size(), value).ec == std::errc{};
  };
  const bool both = read(file.substr(begin, at - begin), name.number) && read(name.count_text, name.count);
  return both && name.count <= 100'000 ? std::optional(name) : std::nullopt;
}

[[nodiscard]] inline std::optional<shard_name> shard_name_of(std::string_view file) {
  const auto of_count = shard_name_with("-of-", file);
  const auto of_rank = shard_name_with(rank_mark, file);
  return of_count || !of_rank || of_rank->before != "model" ? of_count : of_rank;  // "Qwen3-mp4" is a whole
}

/// Whether a file is one process's of several.
[[nodiscard]] inline bool is_of_rank(std::string_view file) {
  const auto name = shard_name_of(file);
  return name && name->mark == rank_mark;
}

/// The shards that the names of these files promise and that are not among them.
[[nodiscard]] inline std::vector<std::string> promised_shards(const std::set<std::string>& files) {
  std::set<std::string> missing;
  std::set<std::string> series;
  for (const auto& file : files) {
    const auto name = shard_name_of(file);
    if (!name || !series.insert(name->sibling(0)).second) {
      continue;
    }
    const bool from_zero = name->mark == rank_mark || files.contains(name->sibling(0));  // some of the others
    const std::uint64_t first = from_zero ? 0 : 1;
    for (std::uint64_t i = first; i < first + name->count; ++i) {
      if (const auto other = name->sibling(i); !files.contains(other)) {
        missing.insert(other);
      }
    }
  }
  return {missing.begin(), missing.end()};
}

}  // namespace detail

MPIROUTER_END
