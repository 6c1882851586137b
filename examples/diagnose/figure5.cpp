// diagnose figure5: the inner losses of every TTT layer, and what they say.
#include "commands.hpp"

using namespace diagnose;

int figure5(Subject& subject, const std::vector<Recording>& recordings, const Options& options) {
  std::vector<Watched> all;
  for (const Recording& recording : recordings)
    all.push_back({recording.name, subject.listen(recording.codes.codes, true).layers});
  std::vector<double> openings;
  for (const Gate& gate : subject.gates()) openings.push_back(mean_magnitude(gate.opening));
  write_figure5(options.output, title_of("Inner losses", subject.facts), all, options.window, openings);
  return 0;
}
