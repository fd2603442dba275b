import { description, license, version } from "../../package.json";
import type { Target } from "./third-party.ts";

export interface Published {
  readonly target: Target;
  readonly file: string;
  readonly sha256: string;
}

const SYSTEMS = { linux: "on_linux", darwin: "on_macos" } as const;
const PROCESSORS = { x64: "on_intel", arm64: "on_arm" } as const;

/** A formula that installs the archives at `url`. */
export function formula(published: readonly Published[], url: string): string {
  const systems = Object.entries(SYSTEMS).flatMap(([os, block]) => {
    const here = published.filter(({ target }) => target.startsWith(`${os}-`));
    if (here.length === 0) return [];
    const processors = here.flatMap(({ target, file, sha256 }) => [
      `    ${PROCESSORS[target.split("-")[1] as keyof typeof PROCESSORS]} do`,
      `      url "${url}/${file}"`,
      `      sha256 "${sha256}"`,
      "    end",
    ]);
    return [`  ${block} do`, ...processors, "  end", ""];
  });
  // Homebrew wants no article, no full stop and few words.
  const summary = description.split(":")[0]!.replace(/^Trains/, "Train");
  return `${[
    "class Rlv < Formula",
    `  desc "${summary}"`,
    `  homepage "${url.replace(/\/releases\/download\/.*$/, "")}"`,
    `  version "${version}"`,
    `  license "${license}"`,
    "",
    ...systems,
    "  def install",
    '    bin.install "rlv"',
    '    man1.install "rlv.1"',
    '    bash_completion.install "completions/rlv.bash" => "rlv"',
    '    zsh_completion.install "completions/_rlv"',
    '    fish_completion.install "completions/rlv.fish"',
    "  end",
    "",
    "  test do",
    '    assert_match version.to_s, shell_output("#{bin}/rlv version")',
    '    system bin/"rlv", "train", "--num_train_steps", "2", "--device", "cpu"',
    "  end",
    "end",
  ].join("\n")}\n`;
}
