// Eigen's dense decompositions in double, as far as verify/ uses them. They take long to compile: with
// MPIROUTER_EXTERN_DECOMPOSITIONS they are declared here, and some one translation unit of the program
// instantiates them (cmake/decompositions/decompositions.cpp).
#pragma once

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/SVD>

// Eigen 5 takes the choice of vectors as a template argument, and has members that must not be instantiated.
#if EIGEN_VERSION_AT_LEAST(3, 4, 90)
#define MPIROUTER_BDC_SVD Eigen::BDCSVD<Eigen::MatrixXd, Eigen::ComputeThinV>
#undef MPIROUTER_EXTERN_DECOMPOSITIONS
#else
#define MPIROUTER_BDC_SVD Eigen::BDCSVD<Eigen::MatrixXd>
#endif

/// Declares the instantiations with `extern`, makes them without.
#define MPIROUTER_INSTANTIATE_DECOMPOSITIONS(prefix)                                                      \
  prefix template class Eigen::BDCSVD<Eigen::MatrixXd>;                                                   \
  prefix template Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>&                                         \
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>::compute(const Eigen::EigenBase<Eigen::MatrixXd>&, int); \
  prefix template Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>&                                         \
  Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>::computeFromTridiagonal(const Eigen::VectorXd&,          \
                                                                         const Eigen::VectorXd&, int)

#ifdef MPIROUTER_EXTERN_DECOMPOSITIONS
MPIROUTER_INSTANTIATE_DECOMPOSITIONS(extern);
#endif
