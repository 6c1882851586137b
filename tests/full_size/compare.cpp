// compare.hpp on the CPU: for the small size; 7b takes 31 GB here.
#include "compare.hpp"

int main(int argc, char** argv) { return mttt::full_size::run<mttt::Cpu>(argc, argv); }
