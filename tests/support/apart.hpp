// The buffers of a call, each with memory of its own, laid over each other two by two: a refusal must name
// the two.
#pragma once

#include <support/messages.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace test_support {

/// What a call reads or writes: how messages call it, and its size in elements of the type that is tried.
struct buffer {
  std::string name;
  std::size_t size;
  bool written;
};

/// call(at) with at[k] the memory of buffer k. Every two buffers of which one is written meet in one element,
/// the last of the first and the first of the second: refused by the names of these two and of no other.
/// Where both are only read, where `may_meet` says so, and where one begins as another ends: accepted.
template <class Element, class Call>
void refuses_every_overlap(const std::vector<buffer>& buffers, Call&& call,
                           const std::vector<std::pair<std::string_view, std::string_view>>& may_meet = {}) {
  std::vector<std::size_t> first;
  std::size_t end = 1;
  for (const buffer& b : buffers) {
    first.push_back(end);
    end += b.size + 1;  // a gap of one element: nothing meets
  }
  const std::size_t spare = end;
  for (const buffer& b : buffers) end += b.size;
  std::vector<Element> arena(end, Element(1));
  const auto message = [&](const std::vector<std::size_t>& places) {
    std::vector<Element*> at;
    for (const std::size_t place : places) at.push_back(arena.data() + place);
    std::fill(arena.begin(), arena.end(), Element(1));
    return message_of([&] { call(at); });
  };
  CHECK(message(first) == "");
  for (std::size_t i = 0; i < buffers.size(); ++i) {
    for (std::size_t k = 0; k < buffers.size(); ++k) {
      if (i == k) continue;
      CAPTURE(buffers[i].name);
      CAPTURE(buffers[k].name);
      bool allowed = !buffers[i].written && !buffers[k].written;
      for (const auto& [a, b] : may_meet) {
        allowed = allowed || (buffers[i].name == a && buffers[k].name == b) ||
                  (buffers[i].name == b && buffers[k].name == a);
      }
      auto places = first;  // both moved to where nothing else is
      places[i] = spare;
      places[k] = spare + buffers[i].size;
      CHECK(message(places) == "");
      places[k] -= 1;
      const std::string text = message(places);
      if (allowed) {
        CHECK(text == "");
      } else {
        const bool names_both = contains(text, buffers[i].name + " and " + buffers[k].name + " overlap") ||
                                contains(text, buffers[k].name + " and " + buffers[i].name + " overlap");
        CAPTURE(text);
        CHECK(names_both);
      }
    }
  }
}

}  // namespace test_support
