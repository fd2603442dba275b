/** Sets of completions whose diversity is known: healthy ones by hand, degenerate ones by construction. */
import { Purpose, Random } from "../../src/core/rng.ts";

const WORDS = {
  adjective:
    "brave tiny gentle clever lonely cheerful sleepy curious quiet proud clumsy golden rusty hidden broken shiny".split(
      " ",
    ),
  animal:
    "fox rabbit bear turtle sparrow mouse owl kitten pony hedgehog frog squirrel duckling lamb otter beaver".split(
      " ",
    ),
  name: "Tim Lily Max Anna Ben Mia Sam Ella Leo Zoe Tom Ruby Jack Nora Finn Ivy".split(" "),
  verb: "dance swim climb sing draw run read build jump explore whistle dig paint gallop hide bake".split(
    " ",
  ),
  place:
    "forest meadow garden river mountain village beach cave valley castle harbour desert attic orchard bridge tower".split(
      " ",
    ),
  object:
    "key feather lantern map shell stone ribbon coin drum kite letter button seed mirror bell compass".split(
      " ",
    ),
  feeling:
    "happy excited nervous grateful surprised calm hopeful amazed worried delighted shy eager puzzled relieved cosy glad".split(
      " ",
    ),
} as const;

export function pick(random: Random, kind: keyof typeof WORDS): string {
  return WORDS[kind][random.below(WORDS[kind].length)]!;
}

/** One skeleton, other words in its slots; slots of one to three words, so that nothing stands at the same place. */
export function templated(count: number, seed = 1): string[] {
  return Array.from({ length: count }, (_, i) => {
    const random = new Random(seed, Purpose.data, i);
    const word = (kind: keyof typeof WORDS) => pick(random, kind);
    const some = () => Array.from({ length: 1 + random.below(3) }, () => word("adjective")).join(" ");
    const [name, friend] = [word("name"), word("name")];
    return (
      `Once upon a time there was a ${some()} ${word("animal")} named ${name}. ${name} loved to ${word("verb")} in the ` +
      `${some()} ${word("place")}. One day ${name} found a ${some()} ${word("object")} near the ${word("place")} and ` +
      `showed it to ${friend}. ${friend} was very ${word("feeling")} and they began to ${word("verb")} with the ` +
      `${word("object")}. In the end ${name} felt ${word("feeling")}.`
    );
  });
}

/** The same by three skeletons in turn. */
export function threeTemplates(count: number): string[] {
  const first = templated(count, 2);
  return Array.from({ length: count }, (_, i) => {
    if (i % 3 === 0) return first[i]!;
    const random = new Random(3, Purpose.data, i);
    const word = (kind: keyof typeof WORDS) => pick(random, kind);
    return i % 3 === 1
      ? `Sure, I can help you with the ${word("object")}! First, take the ${word("adjective")} ${word("object")} and ${word("verb")} it. ` +
          `Second, make sure that the ${word("place")} is ${word("adjective")}. Finally, let me know if you feel ${word("feeling")}.`
      : `I am not able to say whether the ${word("animal")} is ${word("adjective")}, because a ${word("animal")} does not ${word("verb")} in a ` +
          `${word("place")}. Could you tell me more about the ${word("object")} that ${word("name")} has?`;
  });
}

/** Openings of short stories, each of its own kind. */
export const STORIES: readonly string[] = `
The lighthouse keeper had not spoken to anyone for eleven days when the boat appeared. It drifted sideways, its sail torn, and nobody stood at the rudder.
Grandma kept her recipes in a biscuit tin, and every card smelled of cinnamon. Peter could not read her handwriting, so he guessed: a pound of flour, a pinch of thunder.
"Who ate the moon?" asked the smallest owl. Her brothers laughed until the branch shook, but that night the sky really was empty.
On Mondays the robot cleaned windows. On Tuesdays it counted pigeons, which was not its job, and wrote the numbers on the back of old tickets.
Mina's shoes were too big, her bag was too heavy, and the bus had already left. Still, she decided, today would be a good day.
Deep under the hill lived a mole who collected sounds. He had jars of rain, two bottles of laughter, and a box with the very last note of a trumpet.
Nobody in the village believed in dragons any more, until the baker's oven stayed hot for three weeks without wood.
The river changed its mind. It had always flowed to the sea; one morning it turned round and began to climb.
Carlos planted a pencil in the garden because he wanted a tree full of drawings. Water it, said his sister, and don't look while it grows.
There was a queue in front of the clock shop. People brought minutes they had saved, wrapped in newspaper, and hoped for a fair price.
My neighbour's parrot knows four languages and uses all of them to complain about the soup.
When the snow came, the two rivals had to share one cave. The bear took the left side; the wolf, grumbling, took the right.
A letter fell out of the library book. It was addressed to me, although it was dated before I was born.
They painted the fence blue, then green, then blue again. By sunset neither of the twins remembered why they had started to argue.
Listen, whispered the radio, I only have battery for one more story, so choose well.
The king's new cook could make anything except eggs. Unfortunately the king liked eggs more than his crown.
It took Aisha nine tries to tie the knot her father had shown her. On the tenth the boat held, and she did not let go of the rope until dark.
Every summer the circus left something behind: a hat, a tent peg, once a sleepy camel called Horace.
Far out on the ice a small red light was blinking. Long, short, short. Jonas copied it into his notebook and felt cold for the first time.
The tailor measured shadows instead of people. You grow, he explained, but your shadow tells me where you are going.
If you turn the third tap in the school cellar, music comes out. Our teacher says it is the pipes. We know better.
Old Mr Brandt sold umbrellas in a town where it never rained. Business was slow, but he was never in a hurry.
She had promised not to open the drawer. A promise, though, weighs less at midnight than at noon.
Before the train stopped, the boy had already invented names for everyone in the carriage, including the dog and the two suitcases.
`
  .trim()
  .split("\n");
