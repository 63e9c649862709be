// The metadata of a GGUF file: what a value may be, and how it is read without trusting any count in it.
#pragma once

#include <mpi_router/io/file_error.hpp>
#include <mpi_router/io/packed/numbers.hpp>

#include <optional>
#include <variant>

MPIROUTER_BEGIN

/// The format's own numbers for the types of values.
enum class gguf_type : std::uint32_t {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  f32,
  boolean,
  string,
  list,
  u64,
  i64,
  f64
};

/// Integers of every width, without and with sign; floats; text, which stays in the mapped file.
using gguf_scalar = std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view>;

namespace detail {

/// Bytes of a value of fixed size; 0 for text, lists and what is no type.
[[nodiscard]] constexpr std::uint64_t gguf_size_of(gguf_type type) noexcept {
  switch (type) {
    case gguf_type::u8:
    case gguf_type::i8:
    case gguf_type::boolean: return 1;
    case gguf_type::u16:
    case gguf_type::i16: return 2;
    case gguf_type::u32:
    case gguf_type::i32:
    case gguf_type::f32: return 4;
    case gguf_type::u64:
    case gguf_type::i64:
    case gguf_type::f64: return 8;
    case gguf_type::string:
    case gguf_type::list: break;
  }
  return 0;
}

/// A value of fixed size, from its bytes.
[[nodiscard]] inline gguf_scalar gguf_number(gguf_type type, const std::byte* at) noexcept {
  using packed::read;
  switch (type) {
    case gguf_type::u8: return std::uint64_t{read<std::uint8_t>(at)};
    case gguf_type::u16: return std::uint64_t{read<std::uint16_t>(at)};
    case gguf_type::u32: return std::uint64_t{read<std::uint32_t>(at)};
    case gguf_type::u64: return read<std::uint64_t>(at);
    case gguf_type::i8: return std::int64_t{read<std::int8_t>(at)};
    case gguf_type::i16: return std::int64_t{read<std::int16_t>(at)};
    case gguf_type::i32: return std::int64_t{read<std::int32_t>(at)};
    case gguf_type::i64: return read<std::int64_t>(at);
    case gguf_type::f32: return double{read<float>(at)};
    case gguf_type::f64: return read<double>(at);
    case gguf_type::boolean: return read<std::uint8_t>(at) != 0;
    case gguf_type::string:
    case gguf_type::list: break;
  }
  return std::uint64_t{0};
}

}  // namespace detail

/// A list in the metadata, as it lies in the file. Lists of text are checked and not taken apart.
struct gguf_list {
  gguf_type type;  ///< of its elements: any but a list
  index_t size;
  std::span<const std::byte> bytes;

  /// Element i of a list of numbers; nothing for text, or outside of the list.
  [[nodiscard]] std::optional<gguf_scalar> number(index_t i) const noexcept {
    const auto width = static_cast<index_t>(detail::gguf_size_of(type));
    if (width == 0 || i < 0 || i >= size) {
      return std::nullopt;
    }
    return detail::gguf_number(type, bytes.data() + i * width);
  }
};

/// One value of the metadata.
using gguf_value = std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view, gguf_list>;

namespace detail {

/// Walks through the header of a GGUF file; every step is checked against the bytes that are left. Refuses
/// with a file_error that says where it stood: "is cut short inside tensor 3 of 17".
class gguf_cursor {
 public:
  gguf_cursor(const std::filesystem::path& file, std::span<const std::byte> bytes)
      : file_(&file), bytes_(bytes) {}

  /// What is read next, for messages: the index-th of `of` things, from 0 on.
  void enter(std::string_view what, std::uint64_t index, std::uint64_t of) noexcept {
    what_ = what;
    index_ = index;
    of_ = of;
  }
  [[nodiscard]] std::uint64_t position() const noexcept { return position_; }

  [[nodiscard]] std::span<const std::byte> take(std::uint64_t count) {
    if (count > bytes_.size() - position_) {
      io::file_failure(*file_, "is cut short inside ", what_, " ", index_ + 1, " of ", of_, ": it takes ",
                       count, " bytes at ", position_, ", the file has ", bytes_.size());
    }
    const auto taken = bytes_.subspan(position_, count);
    position_ += count;
    return taken;
  }
  template <class T>
  [[nodiscard]] T number() {
    return packed::read<T>(take(sizeof(T)).data());
  }
  [[nodiscard]] std::string_view text() {
    const auto bytes = take(number<std::uint64_t>());
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  /// The value of that type under that key.
  [[nodiscard]] gguf_value value(std::string_view key, std::uint32_t type_number) {
    const auto type = static_cast<gguf_type>(type_number);
    if (type == gguf_type::string) {
      return text();
    }
    if (type == gguf_type::list) {
      return list(key);
    }
    const std::uint64_t size = gguf_size_of(type);
    if (size == 0) {
      fail(key, "a value of unknown type ", type_number);
    }
    return std::visit([](auto number) { return gguf_value(number); }, gguf_number(type, take(size).data()));
  }

 private:
  [[nodiscard]] gguf_list list(std::string_view key) {
    const auto type_number = number<std::uint32_t>();
    const auto type = static_cast<gguf_type>(type_number);
    const auto count = number<std::uint64_t>();
    const std::uint64_t size = gguf_size_of(type);
    const std::uint64_t begin = position_;
    if (type == gguf_type::string) {
      for (std::uint64_t i = 0; i < count; ++i) {
        (void)text();
      }
    } else if (size == 0) {
      fail(key, type == gguf_type::list ? "a list of lists" : "a list of values of unknown type ",
           type == gguf_type::list ? std::string() : std::to_string(type_number));
    } else if (count > bytes_.size() / size) {
      fail(key, "a list of ", count, " values, more than the file has room for");
    } else {
      (void)take(count * size);
    }
    return {type, static_cast<index_t>(count), bytes_.subspan(begin, position_ - begin)};
  }
  template <class... Parts>
  [[noreturn]] void fail(std::string_view key, const Parts&... holds) const {
    io::file_failure(*file_, "the metadata hold ", holds..., " under '", io::printable(key), "'");
  }

  const std::filesystem::path* file_;
  std::span<const std::byte> bytes_;
  std::uint64_t position_ = 0;
  std::string_view what_ = "its beginning, part";
  std::uint64_t index_ = 0;
  std::uint64_t of_ = 1;
};

}  // namespace detail

MPIROUTER_END
