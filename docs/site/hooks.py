"""Hands MkDocs the notebooks, which lie outside of docs/, and the pages made of the code."""

import pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts them into the navigation."""
    sections = {name: entry for item in config.nav for name, entry in item.items()}
    sections["Tutorials"] += pages.notebooks()
    for room, of_room in pages.api_pages().items():
        sections["Reference"].append({room or "sft_jax": list(of_room)})
    return config


@event_priority(100)  # before the plugin that looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Puts them among the files."""
    for path in pages.notebooks():
        files.append(File(path, str(pages.ROOT), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, "commands.md", content=pages.commands_page()))
    for of_room in pages.api_pages().values():
        for path, text in of_room.items():
            files.append(File.generated(config, path, content=text))
    return files
