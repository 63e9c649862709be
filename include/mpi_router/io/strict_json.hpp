// JSON as a checkpoint may contain it: read as a stream, each key once, no deep nesting, nothing kept that
// is not asked for.
#pragma once

#include <mpi_router/io/file_kind.hpp>
#include <mpi_router/io/mapped_file.hpp>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <optional>
#include <span>
#include <unordered_set>
#include <vector>

MPIROUTER_BEGIN

namespace detail {

/// A value that is neither object nor array. `integer` is set for integers in [0, 2^64) alone.
struct json_scalar {
  std::optional<std::uint64_t> integer = {};
  const std::string* text = nullptr;  ///< set for strings; lives as long as the call
  bool is_null = false;
};

/// One open object or array: `key` is the key whose value is being read, empty in arrays.
struct json_level {
  bool is_object = false;
  std::string key;
  std::unordered_set<std::string> seen;
};

/// The SAX interface of nlohmann-json, turned into two calls on a visitor:
///   open(levels, is_object)   an object or array begins, as the value at the place that `levels` says
///   scalar(levels, value)     a scalar, likewise
/// Both throw file_error for what they do not expect. Duplicate keys and deep nesting are refused here.
template <class Visitor>
class strict_json_events {
 public:
  using json = nlohmann::json;

  strict_json_events(const std::filesystem::path& file, Visitor& visitor) : file_(file), visitor_(visitor) {}

  bool null() { return scalar({.integer = {}, .text = nullptr, .is_null = true}); }
  bool boolean(bool) { return scalar({}); }
  bool number_integer(json::number_integer_t) { return scalar({}); }
  bool number_unsigned(json::number_unsigned_t value) { return scalar({.integer = value}); }
  bool number_float(json::number_float_t, const json::string_t&) { return scalar({}); }
  bool string(json::string_t& value) { return scalar({.integer = {}, .text = &value}); }
  bool binary(json::binary_t&) { return false; }
  bool start_object(std::size_t) { return open(true); }
  bool start_array(std::size_t) { return open(false); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(json::string_t& name) {
    auto& level = levels_.back();
    if (!level.seen.insert(name).second) {
      io::file_failure(file_, "the key '", io::printable(name), "' appears twice in ",
                       place(levels_.size() - 1));
    }
    level.key = name;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    std::string_view what = error.what();
    what.remove_prefix(std::min(what.size(), what.find("] ") + 2));
    io::file_failure(file_, "no valid JSON at byte ", position, ": ", io::printable(what, 300));
  }

 private:
  static constexpr std::size_t deepest = 127;  // as deep as serde_json, which safetensors reads with, goes

  bool scalar(const json_scalar& value) {
    visitor_.scalar(std::span<const json_level>(levels_), value);
    return true;
  }
  bool open(bool is_object) {
    visitor_.open(std::span<const json_level>(levels_), is_object);
    if (levels_.size() == deepest) {
      io::file_failure(file_, "JSON nested deeper than ", deepest, " levels");
    }
    levels_.push_back({.is_object = is_object, .key = {}, .seen = {}});
    return true;
  }
  bool close() {
    levels_.pop_back();
    return true;
  }
  [[nodiscard]] std::string place(std::size_t depth) const {
    std::string out;
    for (std::size_t i = 0; i < depth; ++i) {
      out += core::concatenate(i == 0 ? "'" : "' / '", io::printable(levels_[i].key));
    }
    return depth == 0 ? "its JSON" : out + "'";
  }

  const std::filesystem::path& file_;
  Visitor& visitor_;
  std::vector<json_level> levels_;
};

/// Whether `text` is a JSON object as far as its start shows; white space may come first.
[[nodiscard]] inline bool starts_object(std::string_view text) {
  return text.substr(std::min(text.size(), text.find_first_not_of(whitespace))).starts_with('{');
}

/// Reads one JSON object from `text` and tells `visitor` what is in it. Throws file_error.
template <class Visitor>
void read_strict_json(const std::filesystem::path& file, std::string_view text, Visitor& visitor) {
  if (!starts_object(text)) {
    io::file_failure(file, "its JSON does not start with '{'");
  }
  // The parser takes a raw NUL for the end of its input; what follows would go unread.
  if (text.find('\0') != std::string_view::npos) {
    io::file_failure(file, "its JSON contains a NUL byte");
  }
  strict_json_events<Visitor> events(file, visitor);
  nlohmann::json::sax_parse(text.begin(), text.end(), &events);
}

/// Reads a file that is one JSON object, likewise; says what it is where it is something else.
template <class Visitor>
void read_json_file(const mapped_file& file, Visitor& visitor) {
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const std::string kind = starts_object(text) ? "" : foreign_kind(file.bytes());
  if (!kind.empty()) {
    io::file_failure(file.path(), kind);
  }
  read_strict_json(file.path(), text, visitor);
}

}  // namespace detail

MPIROUTER_END
