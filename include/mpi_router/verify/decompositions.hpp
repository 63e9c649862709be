// Eigen's dense decompositions in double, as far as verify/ uses them. They take long to compile: with
// MPIROUTER_EXTERN_DECOMPOSITIONS they are declared here, and some one translation unit of the program, which
// defines MPIROUTER_INSTANTIATE_DECOMPOSITIONS, instantiates them (cmake/decompositions/decompositions.cpp).
#pragma once

#include <mpi_router/core/config.hpp>

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/SVD>

// Eigen 5 takes the choice of vectors as a template argument, and has members that must not be instantiated.
#if EIGEN_VERSION_AT_LEAST(3, 4, 90)
#define MPIROUTER_BDC_SVD Eigen::BDCSVD<Eigen::MatrixXd, Eigen::ComputeThinV>
#else
#define MPIROUTER_BDC_SVD Eigen::BDCSVD<Eigen::MatrixXd>
#endif

#if !EIGEN_VERSION_AT_LEAST(3, 4, 90) && \
    (defined(MPIROUTER_EXTERN_DECOMPOSITIONS) || defined(MPIROUTER_INSTANTIATE_DECOMPOSITIONS))
#ifdef MPIROUTER_INSTANTIATE_DECOMPOSITIONS
#define MPIROUTER_DECOMPOSITION template
#else
#define MPIROUTER_DECOMPOSITION extern template
#endif
MPIROUTER_DECOMPOSITION class Eigen::BDCSVD<Eigen::MatrixXd>;
MPIROUTER_DECOMPOSITION Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>&
Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>::compute(const Eigen::EigenBase<Eigen::MatrixXd>&, int);
MPIROUTER_DECOMPOSITION Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>&
Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>::computeFromTridiagonal(const Eigen::VectorXd&,
                                                                       const Eigen::VectorXd&, int);
#undef MPIROUTER_DECOMPOSITION
#endif
