#include "help.hpp"

#include "text.hpp"

#include <mpi_router/io/moe/families.hpp>

#include <fmt/format.h>

#include <algorithm>

namespace verify {

namespace {

/// The families, a few lines each.
std::string describe_families() {
  std::string out;
  for (const auto& family : mpi_router::model_families()) {
    std::string layouts;
    for (const auto layout : family.layouts) {
      layouts += (layouts.empty() ? "" : " or ") + std::string(to_string(layout));
    }
    const auto router = replaced(std::string(family.router), "{layer}", "…");
    const auto gate = replaced(replaced(std::string(family.gate), "{layer}", "…"), "{expert}", "E");
    out += fmt::format("  {}\n      {}\n      {}  {}\n", family.name, router, gate, layouts);
  }
  return out;
}

}  // namespace

std::string wrapped(const std::string& text) {
  constexpr std::size_t width = 70;
  std::string out;
  std::size_t line = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find(' ', begin), text.size());
    if (line > 0 && line + 1 + (end - begin) > width) {
      out += '\n';
      line = 0;
    }
    out += line > 0 ? " " : "";
    out += text.substr(begin, end - begin);
    line += (line > 0 ? 1 : 0) + (end - begin);
    begin = end + 1;
  }
  return out;
}

std::string describe_layouts() {
  std::string all =
      "\nLayouts (N experts, F neurons each, D hidden dimensions; the tensor of one expert lacks N):\n";
  for (const auto& layout : mpi_router::gate_layout_table) {
    all += fmt::format("  {:<18}  {}\n", layout.name, layout.meaning);
  }
  return all;
}

std::string help_footer() {
  return fmt::format(R"({}
Known families (… is any prefix, E the number of an expert):
{}
Other names are read where what they look like and the shapes leave no doubt: a matrix [N, D] beside the matrices of N
  experts; the table then says "no known family". What stays in doubt is named, for --router, --gate and --layout.

A layout is never guessed: it is taken if the shapes leave no other (those of D = 2F and F = D do), if the weights are
  packed in groups along D or are GGUF's, whose rows are, if the config.json beside the checkpoint names an architecture
  that has but one, if torch's Linear leaves no choice (a "….weight" of one expert is [F, D]), or if --layout says so.
  What was taken, and why, stands with each layer.

Packed weights (FP8, MXFP4, NVFP4, int8, int4, MLX, AWQ, GPTQ, bitsandbytes, GGUF except its codebook, ternary, one- and two-bit types) are
  decoded to the products of codes and scales; experts of more than six million weights to floats, rounded once, as
  the formats' own decoders do. What is certified is certified of those numbers.

Where experts see a latent P x, A P is measured, rounded to floats where it has more than six million elements; where
  they have no gate, the up projection takes its place ("part").

With --of the numbers are of M = a AᵀA + b UᵀU + c WWᵀ, of gate A, up U and down projection W, [D, F]: those of the matrix
  of their rows one below the other, [√a A; √b U; √c Wᵀ]. A layer that lacks one of them, or whose W may lie both ways, is
  not looked at, and said so. Sums are read in double, all of an expert at a time.

Coverage: "n of m layers, r of s rows" counts all routers and experts that the files hold, and those that the names of
  shards (…-00002-of-00003), the index or the config.json beside promise. What is not looked at, or not there, is named,
  and so is what --layers and --sample leave out, which --require-angle then does not ask for.

JSON: {{"version", "tolerance", "max_steps", "exact", "coverage": {{…}}, "layers": […], "unmatched": […]}}, and with --gpu
  "device", its name. "coverage" has
  "layers", "layers_looked_at", "layers_certified", the same of "rows", "complete" and "summary", a sentence; certified
  means to the angle of --require-angle or, without it, to any. A layer has "file", "name" (the prefix that its router
  and experts share), "family", "router", "gate" (names of tensors), "router_dtype", "dtype", "router_layout",
  "layout", "layout_known_by", "router_rows", "num_experts", "ffn_dim" (null where experts differ, who then have one
  each), "hidden_dim" and "experts"; "first_expert" where names number the first not 0, and with --of "of" and "matrices",
  what is summed. What is "unmatched" has "file", "name", "reason", "what" (not looked at, missing,
  set aside), and the "layers" and "rows" that the answer lacks for it. An expert has "expert", "sigma1", "sigma2", "sigma2_from",
  "cosine_stored", "cosine_step", "lambda_stored", "lambda_step", "rayleigh", "residual", "angle_bound", "certificate"
  (rigorous, probabilistic, heuristic, none), "steps" and "status" (ok, zero_row, zero_image, non_finite). Angles are in
  radians. What is not known is null: steps beyond --max-steps, sigma2 without an SVD ("sigma2_from" says what it is from), the numbers of degenerate rows.
  lambda is relative to sigma1.

Lines: the first line of --lines is a header, what the numbers depend on; then an expert a line, in the order in which
  they finish, with the members that "experts" has in the JSON, "layer", its place among the layers of the header,
  "angle", and "trace", rows of step, rho, residual, angle. To resume, the header must be that of the new run.

mpirun -n N --bind-to none verify_checkpoint ...  spreads the experts over N processes, where this was built with MPI.
  With --gpu process k takes GPU k, or k modulo how many there are.

Exit status: 0 done; 1 done, but with --require-angle a row could not be certified, or something was not looked at or is
  missing; 2 bad input or usage, or no layer that can be read, in which case neither JSON nor trace nor page is written.
  Of several checkpoints those that can be read are done, and all is written; the others are named, and the status is 2.

Examples:
  verify_checkpoint                                       the two small models that come with the project
  verify_checkpoint model-folder --summary --json out.json
  verify_checkpoint model-folder --report pages           then open pages/index.html
  verify_checkpoint model-folder --json out.json --lines run.jsonl --resume    again after it was killed
  verify_checkpoint model.safetensors --no-svd --require-angle 0.01
  verify_checkpoint model-folder --gpu --json out.json --lines run.jsonl --resume
  verify_checkpoint m.safetensors --router 'blk.{{layer}}.route' --gate 'blk.{{layer}}.ffn.{{expert}}.gate' --layout nfd
  verify_checkpoint recondition model-folder new-folder --steps 20
  verify_checkpoint compare model-folder model-q4_k.gguf
)",
                     describe_layouts(), describe_families());
}

std::string compare_footer() {
  return describe_layouts() + R"(
Layers are the same where their names are, or else their numbers: model.layers.3.mlp is blk.3. Experts are matched by
  likeness, the |cosine| of their principal directions plus the cosine of their rows: i of A and j of B where neither is
  liker to another. Where both have as many experts and no match changes a number, all are matched by number. The rest,
  of pruned or merged experts, is named. Other D: not comparable. Other F: no ‖ΔA‖. A ‖ΔA‖ compares neuron by neuron:
  neurons in another order change it, though not σ and v₁. Experts of a latent are A P, in ‖ΔA‖ too.

Choices: the K largest x · r, of the rows that have an expert. Biases, groups and tables of the model are left out. K is
  what the config.json (or GGUF metadata) of A says, else that of B. The tokens are isotropic Gaussian ones, the same each
  time, or those of --tokens.

JSON: {"version", "a", "b", "tokens", "top_k", "coverage": {…}, "layers": […], "only_a", "only_b", "unmatched_a",
  "unmatched_b"}. A layer has the names "a" and "b", "problem" (empty if it could be compared), "hidden_dim" and
  "num_experts" (of both), "matched_by" (number, likeness), "only_a" and "only_b" (experts without a counterpart), "flips_stored", "flips_step" and "flips_lost" (shares
  of A's choices; lost are those of experts without a counterpart) and "experts": "a" and "b" with "expert", "ffn_dim",
  "cosine_stored" (of its own row to its own direction), "sigma1", "sigma2", "sigma2_from"; "row_cosine", "row_angle",
  "direction_cosine", "direction_angle", "direction_uncertainty", "change_norm", "change_norm_bound" (also Weyl's, of
  every σ; it fails with a probability of at most 1e-6), "wedin_angle", "wedin_certificate". Angles are in radians; what
  is not known is null. With --gpu there is "device", its name.

Exit status: 0 done; 1 done, but with --require-cosine something has moved farther, or could not be compared; 2 bad input
  or usage, or nothing in common.
)";
}

}  // namespace verify
