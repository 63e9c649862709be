// A picture: gnuplot draws the plot by a script of its own, NAME.gp, and its words are set around it: title,
// parameters and caption, as text that search and screen readers find. Its paper is that of the page, white
// or black.
#pragma once

#include <filesystem>
#include <string>

namespace theory {

/// Writes NAME.gp, gnuplot's script, into `folder`, and draws NAME.svg there from the numbers that lie in it.
/// The script is style.gp, then `values`, then NAME.gp of THEORY_SCRIPTS, whose first lines are `# title: …`,
/// `# caption: …` and perhaps `# height: …` of the plot in pixels.
///
/// parameters: of the numbers, in words; values: settings that the script goes on from, such as "limit
/// = 2.5". Without gnuplot a line says so, and there is no picture. Throws where the script or its words are
/// missing, and where gnuplot fails.
void draw_picture(const std::filesystem::path& folder, const std::string& name, const std::string& parameters,
                  const std::string& values);

}  // namespace theory
