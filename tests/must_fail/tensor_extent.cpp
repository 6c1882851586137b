// expect: conversion from .*Tensor.* to non-scalar type|no viable conversion|could not convert
#include <mttt/core/tensor.hpp>

mttt::Tensor<float, mttt::dyn, 4> frames;
#if defined(RIGHT)
mttt::Tensor<const float, 2, 4> two = mttt::Tensor<float, mttt::dyn, 4>(nullptr, {2, 4});
#else
mttt::Tensor<const float, 2, 5> two = mttt::Tensor<float, mttt::dyn, 4>(nullptr, {2, 4});
#endif
