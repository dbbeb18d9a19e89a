// The little that the C++ tests need: CHECK, and a counter of failures.
#pragma once

#include <cstdio>

extern int failures;

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                         \
    }                                                                     \
  } while (false)

void test_cores();
void test_geometry();
void test_int8();
void test_products();
void test_vec();
