// Short names for what is read and what is written.
#pragma once

#include <mpi_router/core/views.hpp>

namespace test_support {

template <class S>
using in = mpi_router::vector_view<const S>;
template <class S>
using out = mpi_router::vector_view<S>;

}  // namespace test_support
